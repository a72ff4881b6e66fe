from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks import Binary, Dense, Multiclass, Regression
from lightning_ckptkd.tasks.infer import TASKS, infer_task, make_task

N = 8
LABELS = torch.arange(N) % 3
YES_NO = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
MANY = torch.tensor([[1, 1, 0], [0, 0, 0]]).repeat(4, 1)
PIXELS = torch.randint(3, (N, 4, 5))
IDS = torch.randint(1, 9, (N, 6))

ROWS: list[tuple[str, Tensor, Tensor, Any, str | None]] = [
    # what it is, output, targets, inputs, what else it might be
    ("multiclass", torch.randn(N, 3), LABELS, None, None),
    ("multiclass", torch.randn(N, 3), LABELS[:, None].to(torch.uint8), None, None),
    ("multiclass", torch.randn(N, 2), YES_NO, None, None),
    ("soft_multiclass", torch.randn(N, 3), torch.rand(N, 3).softmax(1), None, "regression"),
    ("soft_multiclass", torch.randn(N, 3), F.one_hot(LABELS), None, "multilabel"),
    ("binary", torch.randn(N), YES_NO, None, None),
    ("binary", torch.randn(N, 1), YES_NO.bool(), None, None),
    ("binary", torch.randn(N, 1), YES_NO.float(), None, "regression"),
    ("binary", torch.randn(N), YES_NO.float()[:, None], None, "regression"),
    ("multilabel", torch.randn(N, 3), MANY, None, None),
    ("multilabel", torch.randn(N, 3), MANY.float(), None, "regression"),
    ("dense", torch.randn(N, 3, 4, 5), PIXELS, None, None),
    ("dense", torch.randn(N, 3, 4, 5), PIXELS[:, None].to(torch.uint8), None, None),
    ("tokens", torch.randn(N, 6, 9), IDS, None, None),
    ("tokens", torch.randn(N, 6, 9), IDS, {"input_ids": IDS + 1, "attention_mask": torch.ones_like(IDS)}, None),
    ("tokens", torch.randn(N, 6, 6), IDS % 6, None, "dense"),
    ("causal_lm", torch.randn(N, 6, 9), IDS, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, None),
    ("causal_lm", torch.randn(N, 6, 9), IDS.where(IDS > 2, -100), IDS, None),
    ("regression", torch.randn(N), torch.randn(N), None, None),
    ("regression", torch.randn(N, 1), torch.randn(N), None, None),
    ("regression", torch.randn(N, 4), torch.randn(N, 4), None, None),
    ("regression", torch.randn(N, 1, 4, 4), torch.randn(N, 4, 4), None, None),
]


@pytest.mark.parametrize(("name", "output", "targets", "inputs", "other"), ROWS)
def test_what_it_is(
    name: str, output: Tensor, targets: Tensor, inputs: Any, other: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        task = infer_task(output, targets, inputs=inputs)
    assert task.name == name
    task.check(output, targets, "Net")
    rows = task.rows(output, output[None], targets)
    task.check_targets(rows.targets, rows.student.shape[1])
    assert bool(task.hard_loss(rows.student, rows.targets).isfinite())
    assert [record for record in caplog.records if "are read as task=" in record.message] == caplog.records
    if other is None:
        assert caplog.records == []
    else:
        [record] = caplog.records
        assert f"read as task='{name}'" in record.message and f"give task='{other}'" in record.message
        changed = make_task(other)  # what the line says
        assert changed is not None
        changed.check(output, targets, "Net")


def test_only_the_targets_values_and_both_shapes_count() -> None:
    assert infer_task(torch.full((N,), float("nan")), YES_NO).name == "binary"


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_labels_that_mean_none(ignored: int) -> None:
    labels = YES_NO.clone()
    labels[2] = ignored
    assert infer_task(torch.randn(N), labels, ignored).ignore_index == ignored
    many = MANY.clone()
    many[3, 1] = ignored
    assert infer_task(torch.randn(N, 3), many, ignored).name == "multilabel"
    pixels = PIXELS.clone()
    pixels[0] = ignored
    assert infer_task(torch.randn(N, 3, 4, 5), pixels, ignored).ignore_index == ignored


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.randn(N, 3), torch.randn(N)),
        (torch.randn(N, 3), torch.randn(N, 2)),
        (torch.randn(N, 3), MANY - 1),
        (torch.randn(N, 128), torch.randn(N, 3, 32, 32)),  # two views: an embedding and an image
        (torch.randn(N, 1, 4, 5), PIXELS),
        (torch.randn(N, 3, 8, 10), PIXELS),
        (torch.ones(N, 3).long(), LABELS),
    ],
)
def test_what_fits_none(output: Tensor, targets: Tensor) -> None:
    with pytest.raises(
        ArgumentError, match=r"No task fits an output of the network, of shape .*rule='full', 'half' or 'spaced'"
    ) as found:
        infer_task(output, targets)
    assert str(tuple(output.shape)) in str(found.value) and str(targets.dtype) in str(found.value)
    assert "task=" in str(found.value) and "multilabel" in str(found.value)


@pytest.mark.parametrize(
    ("output", "targets", "message"),
    [
        (
            torch.randn(N, 3),
            LABELS[:5],
            r"5 samples should have .* \(5, K\), but those of Net have \(8, 3\)",
        ),
        (torch.randn(()), YES_NO, r"shape \(N, K\), but those of Net have \(\)"),
        (
            torch.randn(N, 1),
            torch.tensor([3, 70, 41, 1, 0, 2, 5, 9]),
            "task='binary' .*, task='regression' for numbers",
        ),
        (torch.randn(N, 1), torch.tensor([0, 1, -1, 0, 0, 1, 1, 1]), "task='binary' for targets of 0 and 1"),
        (torch.randn(N), LABELS, r"shape \(N, K\), but those of Net have \(8,\)"),
    ],
)
def test_class_indices_are_labels(output: Tensor, targets: Tensor, message: str) -> None:
    """What can be told from them is said as for classification, and whole numbers are not guessed to be amounts."""
    with pytest.raises(ArgumentError, match=message):
        infer_task(output, targets, model="Net")
    assert infer_task(torch.randn(N), LABELS.float()).name == "regression"


def test_what_the_error_advises() -> None:
    assert infer_task(torch.randn(N, 1), torch.tensor([0, 1, -1, 0, 0, 1, 1, 1]), ignore_index=-1).name == "binary"


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_by_name(name: str) -> None:
    task = make_task(name)
    assert task is not None and task.name == name
    assert task.describe()["name"] == name


def test_names_and_tasks_of_ones_own() -> None:
    assert make_task("auto") is None
    own = Dense(ignore_index=255)
    assert make_task(own) is own
    assert make_task(own, ignore_index=255) is own
    assert isinstance(make_task("dense", ignore_index=255), Dense)
    with pytest.raises(ArgumentError, match=r"task='multi_label' is unknown. Near names: 'multilabel'"):
        make_task("multi_label")


def test_an_ignore_index_that_would_be_passed_by() -> None:
    with pytest.raises(ArgumentError, match=r"Give it to the task alone, as Multiclass\(ignore_index=3\)"):
        make_task(Multiclass(), ignore_index=3)
    assert make_task(Multiclass(ignore_index=3), ignore_index=3) is not None
    for task in ("regression", "soft_multiclass", Regression()):
        with pytest.raises(ArgumentError, match="ignore_index=3 is not defined for task="):
            make_task(task, ignore_index=3)
    with pytest.raises(ArgumentError, match="ignore_index=3 is not defined for task=regression"):
        infer_task(torch.randn(N), torch.randn(N), ignore_index=3)
    assert isinstance(make_task(Binary()), Binary)
