"""Each argument of each public call wrong in turn: one of our own errors, which names the argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import (
    CheckpointHarvester,
    CkptKDError,
    CutMix,
    DistillationModule,
    MISelector,
    Mixup,
    SnapshotStore,
    StudentProxy,
    TeacherCache,
    export_student,
    harvest_checkpoints,
)
from lightning_ckptkd.losses import (
    DISTLoss,
    DKDLoss,
    FeatureLoss,
    KDLoss,
    MSELoss,
    combine_logits,
    dist_loss,
    dkd_loss,
    feature_loss,
    kd_loss,
    mse_loss,
)
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.tasks import Binary, CausalLM, Dense, Multiclass, Multilabel, SoftMulticlass, Tokens
from lightning_ckptkd.teachers import (
    Acceleration,
    AllTeachers,
    FeatureMatching,
    Progressive,
    RandomTeacher,
    Route,
    choose_teachers,
)
from tests.projects import Project, convolutions, digits

NAN, INF = float("nan"), float("inf")
NAME = (3, ["a"], "nonsense")  # of one of a few
WHOLE = ("many", 1.5, NAN, True, [1])  # where an integer should be
REAL = ("much", [1.0], NAN, True)
PATHS = (3, ["a"], "\0")
FLAG = ("yes", 2, None)
PART = (3, object())  # of a path to a submodule, or None
OTHER = (3, "nonsense", object())  # where an object of ours should be

Wrong = Mapping[str, tuple[Any, ...]]
SCHEDULE: Wrong = {"from_epoch": (*WHOLE, -1, 9), "until_epoch": ("late", 1.5, 0, True)}
LOGIT_LOSS: Wrong = {
    "temperature": (*REAL, 0, -1, INF),
    "combine": NAME,
    "scale": (None, "nonsense", [1], 0, -1, NAN, INF, True),
}
HARD: Wrong = {
    "ignore_index": ("none", 1.5, [1]),
    "class_weights": (3, "even", [1.0, -1.0], [NAN], ["a"]),
    "label_smoothing": (*REAL, -0.1, 1.0),
}
LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
TENSOR = (None, "logits", [[1.0]], 3, torch.ones(4, 3, 2), torch.tensor(1.0))
PAIR: Wrong = {"student_logits": (*TENSOR, LOGITS[:2], LOGITS[:, :2]), "teacher_logits": TENSOR}

#: A call that works with what stands behind it, and wrong values of each argument.
CALLS: dict[Callable[..., Any], tuple[dict[str, Any], Wrong]] = {
    CheckpointHarvester: (
        {},
        {
            "dirpath": (3, ["a"]),
            "submodule": PART,
            "every_n_epochs": (*WHOLE, 0, -1),
            "every_n_train_steps": (*WHOLE, 0, -1),
            "epochs": (3, "all", [], [-1], ["a"], [0.5]),
            "window": (None, 0.5, "half", (0, 2), (0.5, 0.1), (0, NAN), (0, 1, 2), ("a", "b")),
            "keep_last": (*WHOLE, 0),
            "keep_bytes": (*WHOLE, 0),
            "dtype": (*NAME, torch.float16),
            "averaged": FLAG,
            "as_artifact": FLAG,
            "on_error": (None, *NAME),
        },
    ),
    MISelector: (
        {},
        {
            "snapshots": (3, ["a"]),
            "rule": (None, *NAME),
            "num_teachers": (*WHOLE, 0),
            "ensemble": NAME,
            "probe": (3, object()),
            "probe_split": (None, *NAME),
            "probe_size": (None, *WHOLE, 0),
            "batch_size": (None, *WHOLE, 0),
            "seed": (None, *WHOLE),
            "student_proxy": (*OTHER, nn.Linear(1, 1)),
            "logits_key": (1.5, ["a"]),
            "task": (None, *NAME),
            "input_keys": (1.5, object()),
            "target_key": (1.5, ["a"]),
            "unpack_batch": (3, "nonsense"),
            "ignore_index": (None, *WHOLE),
            "on_error": (None, *NAME),
            "race": FLAG[:2],
        },
    ),
    DistillationModule: (
        {"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2), "snapshots": "harvest"},
        {
            "student": (None, 3, "resnet", [nn.Linear(2, 2)]),
            "teacher": (None, 3, "resnet", []),
            "snapshots": (None, 3, [], [3]),
            "choice": (3, 1.5, [1.5], ["a"]),
            "alpha": (None, *REAL, -0.1, 1.1),
            "temperature": (None, *REAL, 0, INF),
            "kd_loss": (3, "nonsense"),
            "optimizer": (None, 3, "adam"),
            "lr_scheduler": (3, "cosine"),
            "cache": OTHER,
            "mix": OTHER,
            "feature_matching": OTHER,
            "schedule": OTHER,
            "teacher_weights": (3, ["a"], object()),
            "submodule": PART,
            "acceleration": (None, *NAME),
            "logits_key": (1.5, ["a"]),
            "student_logits_key": (1.5, ["a"]),
            "task": (None, *NAME),
            "input_keys": (1.5, object()),
            "target_key": (1.5, ["a"]),
            "unpack_batch": (3, "nonsense"),
            "ignore_index": (None, *WHOLE),
        },
    ),
    StudentProxy: (
        {"student": nn.Linear(2, 2)},
        {
            "student": (None, 3, "resnet"),
            "steps": (None, *WHOLE, 0),
            "candidates": (None, *WHOLE, 1),
            "batch_size": (None, *WHOLE, 0),
            "alpha": (None, *REAL, 2),
            "temperature": (None, *REAL, 0, INF),
            "optimizer": (None, 3, "adam"),
            "logits_key": (1.5, ["a"]),
        },
    ),
    TeacherCache: (
        {"dirpath": "cache"},
        {
            "dirpath": (None, 3, ["a"]),
            "views": (None, *WHOLE, 0),
            "memory": (None, *WHOLE, -1),
            "dtype": (None, *NAME),
            "top_k": (*WHOLE, 0),
            "seed": (None, *WHOLE),
        },
    ),
    Mixup: ({}, {"alpha": (None, *REAL, 0, INF), "seed": (None, *WHOLE)}),
    CutMix: ({}, {"alpha": (None, *REAL, 0, INF), "seed": (None, *WHOLE)}),
    Acceleration: ({}, {"mode": (None, *NAME), "bf16": FLAG, "fp16": FLAG}),
    FeatureMatching: (
        {"student_layer": "0", "teacher_layer": "0", "student_dim": 2, "teacher_dim": 2},
        {
            "student_layer": (None, 3),
            "teacher_layer": (None, 3),
            "student_dim": (None, *WHOLE, 0),
            "teacher_dim": (None, *WHOLE, 0),
            "spatial": FLAG,
            "weight": (None, *REAL, -1, INF),
        },
    ),
    AllTeachers: ({"until_epoch": 5}, SCHEDULE),
    RandomTeacher: ({"until_epoch": 5}, {**SCHEDULE, "seed": (None, *WHOLE)}),
    Progressive: ({"until_epoch": 5}, {**SCHEDULE, "cumulative": FLAG}),
    Route: (
        {"stages": {0: 1}, "until_epoch": 5},
        {**SCHEDULE, "stages": (None, 3, [0], {1: 1}, {0: "a"}, {"a": 0}, {})},
    ),
    MI: (
        {},
        {
            "feature": (None, *NAME),
            "layer": PART,
            "temperature": (None, *REAL, 0),
            "input_estimator": (None, *NAME),
            "label_estimator": (None, *NAME),
            "given_label": FLAG,
            "input_weight": (None, *REAL, -1, INF),
            "label_weight": (None, *REAL, -1, INF),
            "normalisation": (None, *NAME),
            "label_floor": (None, *REAL, -1, 2),
            "ties": (None, *NAME),
            "likelihood": (None, *NAME),
            "decoder_steps": (None, *WHOLE, 0),
            "input_view": (3, "nonsense"),
        },
    ),
    KDLoss: ({}, LOGIT_LOSS),
    MSELoss: ({}, LOGIT_LOSS),
    DKDLoss: ({}, {**LOGIT_LOSS, "alpha": (None, *REAL, -1, INF), "beta": (None, *REAL, -1, INF)}),
    DISTLoss: ({}, {**LOGIT_LOSS, "beta": (None, *REAL, -1, INF), "gamma": (None, *REAL, -1, INF)}),
    FeatureLoss: (
        {"student_dim": 2, "teacher_dim": 2, "spatial": False},
        {"student_dim": (None, *WHOLE, 0), "teacher_dim": (None, *WHOLE, 0), "spatial": FLAG},
    ),
    kd_loss: (
        {"student_logits": LOGITS, "teacher_logits": LOGITS, "temperature": 2.0},
        {**PAIR, "temperature": (None, *REAL, 0)},
    ),
    mse_loss: ({"student_logits": LOGITS, "teacher_logits": LOGITS}, PAIR),
    dist_loss: (
        {"student_logits": LOGITS, "teacher_logits": LOGITS, "temperature": 2.0},
        {**PAIR, "temperature": (None, *REAL, 0), "beta": (None, "much"), "gamma": (None, "much")},
    ),
    dkd_loss: (
        {
            "student_logits": LOGITS,
            "teacher_logits": LOGITS,
            "temperature": 2.0,
            "target": torch.tensor([0, 1, 2, 0]),
        },
        {
            **PAIR,
            "target": (None, 3, [0, 1, 2, 0], torch.ones(4), torch.ones(2).long()),
            "temperature": (None, *REAL, 0),
            "alpha": (None, "much"),
            "beta": (None, "much"),
        },
    ),
    feature_loss: (
        {"student_features": LOGITS, "teacher_features": LOGITS},
        {"student_features": (None, 3, "a", LOGITS[:2]), "teacher_features": (None, 3, "a")},
    ),
    combine_logits: (
        {"teacher_logits": LOGITS[None], "how": "logits", "temperature": 2.0},
        {
            "teacher_logits": (None, "logits", 3, LOGITS, torch.ones(0, 4, 3)),
            "how": (None, *NAME),
            "temperature": (None, *REAL, 0),
            "weights": (3, [1.0], torch.ones(2), torch.tensor([-1.0]), torch.tensor([0.0])),
        },
    ),
    Multiclass: ({}, HARD),
    Dense: ({}, HARD),
    Tokens: ({}, HARD),
    CausalLM: ({}, HARD),
    SoftMulticlass: ({}, {name: HARD[name] for name in ("class_weights", "label_smoothing")}),
    Binary: ({}, {"ignore_index": HARD["ignore_index"], "pos_weight": ("a", [1.0], -1.0, NAN)}),
    Multilabel: ({}, {"ignore_index": HARD["ignore_index"], "pos_weight": ("a", 3, [-1.0], [NAN])}),
    harvest_checkpoints: (
        {"checkpoints": ".", "snapshots": "harvest"},
        {
            "checkpoints": (None, *PATHS, "nowhere"),
            "snapshots": (None, 3, ["a"]),
            "submodule": PART,
            "progress": FLAG,
            "files": (3, [3], object()),
        },
    ),
    export_student: (
        {"checkpoint": "a.ckpt", "out": "a.pt"},
        {"checkpoint": (None, *PATHS, "nowhere.ckpt"), "out": (None, *PATHS, "a.txt", ".pt/", "")},
    ),
    SnapshotStore.open: ({"folder": "harvest"}, {"folder": (None, *PATHS, "nowhere", "nowhere://a/b")}),
    SnapshotStore.create: (
        {"folder": "harvest", "run_id": "run", "source": {}},
        {"folder": (None, *PATHS), "run_id": (None, 3, ["a"]), "source": (None, 3, "a"), "holder": (3, ["a"])},
    ),
}
UNNAMED = {  # these are told by the file, or by the option that they are given as
    (Acceleration, "mode"): "acceleration",
    (harvest_checkpoints, "checkpoints"): "nowhere",
    (export_student, "checkpoint"): "nowhere",
    (SnapshotStore.open, "folder"): "nowhere",
}


def wrong_calls() -> Iterator[Any]:
    for call, (_, arguments) in CALLS.items():
        for name, values in arguments.items():
            for place, value in enumerate(values):
                yield pytest.param(call, name, value, id=f"{call.__qualname__}-{name}-{place}")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_all_arguments_are_in_the_table(call: Callable[..., Any]) -> None:
    parameters = inspect.signature(call).parameters.values()
    assert set(CALLS[call][1]) == {one.name for one in parameters if one.kind != one.VAR_KEYWORD}


@pytest.mark.parametrize(("call", "name", "value"), list(wrong_calls()))
def test_one_argument_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], name: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CkptKDError) as found:
        call(**{**CALLS[call][0], name: value})
    assert name in str(found.value) or UNNAMED.get((call, name), "\0") in str(found.value), str(found.value)
    assert list(tmp_path.iterdir()) == []


def select(folder: Path, **given: Any) -> Any:
    options = {"model": Project(), "probe": DataLoader(digits(1000, 1064), 32), "progress": False}
    return MISelector(num_teachers=1).select(**{"snapshots": folder, **options, **given})


def teach(folder: Path, **given: Any) -> Any:
    student = nn.Sequential(convolutions(2), nn.Linear(16, 10))
    options = {"student": student, "teacher": Project(), "snapshots": folder, "choice": "full", **given}
    module = DistillationModule(**options)
    module.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.training_step(given.get("batch", digits(0, 8).tensors), 0)


def choose(folder: Path, **given: Any) -> Any:
    return choose_teachers(SnapshotStore.open(folder), **given)


USED: list[tuple[Callable[..., Any], Wrong]] = [
    (
        select,
        {
            "snapshots": (None, 3, "nowhere"),
            "model": (3, "resnet", nn.Linear(2, 2)),
            "probe": (3, "digits", [], digits(1000, 1100), DataLoader(digits(1000, 1010), 32)),
            "datamodule": (3, "digits"),
            "device": (3.5, "nonsense", "cuda:99"),
        },
    ),
    (
        teach,
        {
            "snapshots": ("nowhere", ["nowhere"]),
            "teacher": (nn.Linear(2, 2),),
            "choice": ("best", [], [99]),
            "student": (nn.Sequential(convolutions(2), nn.Linear(16, 9)),),
            "teacher_weights": ("a", [], [1.0, 2.0], [-1.0], [NAN]),
            "submodule": ("nonsense",),
            "input_keys": ("nonsense", 7, []),
            "target_key": ("nonsense", 7),
            "unpack_batch": (lambda batch: batch[0], lambda batch: (1, 2)),
            "task": ("binary", "multilabel", "dense"),
        },
    ),
    (choose, {"choice": (3, "best", [], [99], ["a"], [1.5])}),
]


@pytest.mark.parametrize(
    ("use", "name", "value"),
    [
        pytest.param(use, name, value, id=f"{use.__name__}-{name}-{place}")
        for use, arguments in USED
        for name, values in arguments.items()
        for place, value in enumerate(values)
    ],
)
def test_one_argument_does_not_fit_the_harvest(
    trained: tuple[Path, Project], use: Callable[..., Any], name: str, value: Any
) -> None:
    before = sorted(trained[0].iterdir())
    with pytest.raises(CkptKDError) as found:
        use(trained[0], **{name: value})
    told = {
        "snapshots": "nowhere",
        "student": "student",
        "model": "layer",
        "probe": "probe",
        "datamodule": "datamodule",
    }
    assert any(word in str(found.value).lower() for word in (name, told.get(name, name))), str(found.value)
    assert sorted(trained[0].iterdir()) == before


def test_they_work_with_what_is_right(trained: tuple[Path, Project]) -> None:
    for call in (*CALLS,):
        if call not in (harvest_checkpoints, export_student, SnapshotStore.open, SnapshotStore.create):
            call(**CALLS[call][0])
    teach(trained[0])
    choose(trained[0], choice="full")
