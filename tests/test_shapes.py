"""The shapes that annotations name are checked here, and only here."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from lightning_ckptkd import shapes
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.by_sample import values_by_sample
from lightning_ckptkd.information.label import tempered_costs
from lightning_ckptkd.losses import kd_loss
from lightning_ckptkd.tasks import Multiclass, Rows
from tests.shapes import ROOMS, check_after


def test_a_wrong_shape_raises() -> None:
    """One that torch broadcasts without a word: of three samples, and of one count."""
    totals, counts = torch.ones(3), torch.full((1,), 2.0)
    assert inspect.unwrap(values_by_sample)(totals, counts).shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError, match="values_by_sample"):
        values_by_sample(totals, counts)
    with pytest.raises(jaxtyping.TypeCheckError, match="Rows"):
        Rows(torch.ones(3, 2), None, torch.ones(4).long())
    with pytest.raises(jaxtyping.TypeCheckError, match="hits"):
        Multiclass().hits(torch.ones(3, 2), torch.ones(1).long())


def test_a_wrong_result_raises() -> None:
    @jaxtyping.jaxtyped(typechecker=check_after)
    def shifted(values: shapes.Float[Tensor, " N"], by: float) -> shapes.Float[Tensor, " N"]:  # noqa: F722
        return values[int(by) :]

    assert shifted(torch.ones(3), 0).shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError, match="shifted"):
        shifted(torch.ones(3), 1)


def test_the_packages_own_errors_come_first() -> None:
    logits = torch.randn(3, 4)
    with pytest.raises(ArgumentError, match=r"should both have the shape \(samples, classes\)"):
        kd_loss(logits, logits[:, :3], 5)
    with pytest.raises(ArgumentError, match="temperature should be a number, got str"):
        kd_loss(logits, logits, "5")  # type: ignore[arg-type]


def test_random_numbers_are_left_alone() -> None:
    logits, labels, state = torch.randn(3, 4), torch.zeros(3).long(), random.getstate()
    tempered_costs(logits, labels, [1, 2.0, 4.0])
    assert random.getstate() == state


def test_users_have_plain_tensors() -> None:
    spec = importlib.util.spec_from_file_location("users_shapes", shapes.__file__)
    assert spec is not None and spec.loader is not None
    users = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(users)
    assert all(getattr(users, name)[Tensor, "N K"] is Tensor for name in shapes.__all__)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What is public in the pure rooms, methods and fields included."""
    for room in ROOMS:
        for found in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                    continue
                for own, part in vars(value).items() if inspect.isclass(value) else [("", value)]:
                    part = getattr(part, "__func__", None) or getattr(part, "fget", None) or part
                    part = part.func if isinstance(part, cached_property) else part
                    if inspect.isfunction(part) and (not own.startswith("_") or own == "__init__"):
                        yield f"{found.name}.{name}.{own}", part


def test_each_public_tensor_has_a_shape() -> None:
    """Which can be read, or it would pass for anything."""
    shaped, bare = 0, []
    for name, function in functions():
        plain = inspect.unwrap(function)
        for argument, text in plain.__annotations__.items():
            if re.search(r"(?<!\[)\bTensor\b", str(text).replace("Callable[..., Tensor]", "")):
                bare.append(f"{name}: {argument}")
            if "[Tensor," in str(text):
                assert function is not plain and eval(text, plain.__globals__) not in (Any, Tensor)
                shaped += 1
    assert bare == []
    assert shaped > 200
