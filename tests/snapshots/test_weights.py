from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_ckptkd import ArgumentError, TeacherError
from lightning_ckptkd.snapshots.weights import (
    find_non_finite,
    get_submodule,
    harvested_part,
    load_into,
    module_weights,
    select_weights,
)
from tests.projects import Project


def test_compiled_modules_have_the_plain_names() -> None:
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)))
    assert set(select_weights(compiled.state_dict())) == {"0.weight", "0.bias"}
    assert set(select_weights({"net._orig_mod.a": torch.ones(1)}, "net")) == {"a"}


def test_a_collision_without_the_prefix_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Two entries of the state dict become 'a'"):
        select_weights({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)})


def test_submodule_is_cut_out_with_relative_names() -> None:
    assert set(select_weights(Project().state_dict(), "classifier")) == {"weight", "bias"}
    with pytest.raises(ArgumentError, match=r"submodule='clasifier'.*Near names: 'classifier'"):
        select_weights(Project().state_dict(), "clasifier")
    with pytest.raises(ArgumentError, match=r"submodule='backbone.9'.*no module of that name.*'backbone.8'"):
        get_submodule(Project(), "backbone.9", "submodule")


def test_values_that_are_no_tensors_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"holds dict at 'scaler\._extra_state'"):
        select_weights({"scaler._extra_state": {"scale": 2}})


def test_parallel_wrappers_have_the_plain_names() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)  # a part that is called so keeps its name
            self.net = nn.DataParallel(torch.compile(nn.DataParallel(nn.Linear(2, 2))))

    assert set(module_weights(Wrapped())) == {"module.weight", "module.bias", "net.weight", "net.bias"}
    assert set(module_weights(Wrapped(), "net")) == set(module_weights(Wrapped(), "net.module")) == {"weight", "bias"}
    assert set(module_weights(nn.DataParallel(nn.Linear(2, 2)))) == {"weight", "bias"}


def test_a_collision_without_a_wrapper_is_refused() -> None:
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    wrapped.register_buffer("weight", torch.ones(1))
    with pytest.raises(ArgumentError, match=r"Two entries of the state dict become 'weight'.*'module.weight'"):
        module_weights(wrapped)


def test_find_non_finite() -> None:
    assert find_non_finite({"a": torch.ones(2), "n": torch.tensor(3)}) is None
    assert find_non_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}) == "b"
    assert find_non_finite({"b": torch.tensor([1.0, float("inf")]).bfloat16()}) == "b"
    assert find_non_finite({"c": torch.tensor([complex(0, float("nan"))])}) == "c"
    mask = torch.full((3, 3), -float("inf")).triu(1)
    assert find_non_finite({"mask": mask, "half": mask.bfloat16()}) is None, "a causal mask is no broken weight"
    assert find_non_finite({"a": torch.tensor([-float("inf"), float("nan")])}) == "a"


@pytest.mark.parametrize(
    "kind",
    [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu],
)
def test_find_non_finite_in_float8(kind: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(kind)
    finite = torch.isfinite(every.float())
    assert 0 < int((~finite).sum()) < 10
    for value, is_finite in zip(every, finite, strict=True):
        assert find_non_finite({"a": every[:1], "b": value}) == (None if is_finite else "b")


def test_float4_is_always_finite_and_loaded_into_float4_alone() -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float4_e2m1fn_x2)
    assert find_non_finite({"a": every}) is None
    module = nn.Module()
    module.register_buffer("a", torch.zeros(256, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    load_into(module, {"a": every}, "x")
    assert torch.equal(module.a.view(torch.uint8), every.view(torch.uint8))
    module.a = torch.zeros(256)
    with pytest.raises(
        TeacherError, match=r"a is of torch\.float4_e2m1fn_x2 in the file, of torch\.float32 in the mod"
    ):
        load_into(module, {"a": every}, "x")


def test_load_into_names_what_differs() -> None:
    given = Project(num_classes=5).state_dict()
    with pytest.raises(
        TeacherError,
        match=r"x.safetensors does not fit teacher=Project. shapes differ: classifier.weight is \(5, 16\) in the file, "
        r"\(10, 16\) in the module, .*number of classes",
    ):
        load_into(Project(), given, "x.safetensors")
    with pytest.raises(TeacherError, match=r"missing in the file: weight, bias; extra: classifier.weight"):
        load_into(nn.Linear(16, 10), {f"classifier.{k}": v for k, v in nn.Linear(16, 10).state_dict().items()}, "x")
    with pytest.raises(TeacherError, match=r"under 'classifier.': give submodule='classifier'"):
        load_into(nn.Linear(16, 10), Project().state_dict(), "x")


def test_load_into_is_exact_and_leaves_gradients_alone() -> None:
    source, target = Project(), Project()
    load_into(target, source.state_dict(), "x")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_harvested_part() -> None:
    project = Project()
    part = select_weights(project.state_dict(), "backbone")
    assert harvested_part(project, "backbone", part) is project.backbone
    assert harvested_part(project.backbone, "backbone", part) is project.backbone
    assert harvested_part(project, None, part) is project
    assert harvested_part(project, ["hostile"], part) is project
