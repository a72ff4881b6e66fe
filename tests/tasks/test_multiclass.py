from __future__ import annotations

import numpy
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DKDLoss
from lightning_ckptkd.tasks import Multiclass


def logits_and_labels(samples: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, classes, dtype=torch.float64), torch.randint(classes, (samples,))


def test_the_hard_loss_is_the_mean_cross_entropy() -> None:
    logits, labels = logits_and_labels()
    costs = -log_softmax(logits.numpy(), 1)[numpy.arange(12), labels.numpy()]
    assert float(Multiclass().hard_loss(logits, labels)) == pytest.approx(costs.mean(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.5]])
def test_its_options_are_torchs(weights: list[float] | None, smoothing: float) -> None:
    logits, labels = logits_and_labels()
    labels[3] = 255
    task = Multiclass(ignore_index=255, class_weights=weights, label_smoothing=smoothing)
    own = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, own, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(task.hard_loss(logits, labels), expected, rtol=1e-12, atol=0)


def test_its_gradient() -> None:
    logits, labels = logits_and_labels()
    labels[0] = -100
    task = Multiclass(class_weights=[1.0, 2.0, 3.0, 0.5], label_smoothing=0.1)
    assert torch.autograd.gradcheck(lambda z: task.hard_loss(z, labels), logits.requires_grad_())


def test_a_batch_without_a_label_costs_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    for task in (Multiclass(), Multiclass(class_weights=[1.0, 1.0, 1.0, 2.0])):
        loss = task.hard_loss(logits, torch.full((3,), -100))
        loss.backward()
        assert float(loss.detach()) == 0
        assert logits.grad is not None and bool((logits.grad == 0).all())


def test_half_precision_does_not_overflow() -> None:
    logits = torch.zeros(200_000, 3, dtype=torch.float16)
    assert float(Multiclass().hard_loss(logits, torch.zeros(200_000).long())) == pytest.approx(numpy.log(3), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_labels_of_any_integer_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits, labels = logits_and_labels()
    task, targets = Multiclass(), labels.to(dtype).reshape(shape)
    task.check(logits, targets, "Net")
    rows = task.rows(logits, torch.stack([logits, logits]), targets)
    assert rows.teachers is not None and rows.teachers.shape == (2, 12, 4)
    assert torch.equal(rows.targets, labels)


def test_samples_without_a_label_are_taught_and_not_measured() -> None:
    logits, labels = logits_and_labels()
    labels[[2, 5]] = -100
    task = Multiclass()
    rows = task.rows(logits, None, labels)
    assert len(rows.student) == 12
    metric = task.metrics(4)["acc"]
    valid = labels != -100
    assert float(metric(logits, labels)) == pytest.approx(float((logits.argmax(1) == labels)[valid].double().mean()))
    known = task.labelled(labels)
    assert known.places.tolist() == valid.nonzero().squeeze(1).tolist() == known.samples.tolist()
    assert torch.equal(known.targets, labels[valid])
    DKDLoss()(rows.student[known.places], logits[known.places], known.targets)  # which has no use for the others


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-100, -100], "ignore_index=-100 is the target of all 2 samples"),
        ([0, 4], "Labels run from 0 to 4, but the teacher has 4 classes"),
        ([-1, 0], "Labels run from -1 to 0"),
    ],
)
def test_labels_that_can_not_be(labels: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Multiclass().check_targets(torch.tensor(labels), 4)


def test_what_the_errors_advise() -> None:
    Multiclass(ignore_index=-1).check_targets(torch.tensor([-1, 0]), 4)
    Multiclass().check_targets(torch.tensor([-100, -100]), 4, partial=True)  # a batch of many


@pytest.mark.parametrize(
    ("output", "targets", "message"),
    [
        (torch.randn(5, 1), torch.zeros(5).long(), "Use task='binary'"),
        (torch.randn(5, 3, 2, 2), torch.zeros(5).long(), r"shape \(N, K\)"),
        (torch.randn(5, 3), torch.zeros(4).long(), r"A batch of 4 samples should have logits of shape \(4, K\)"),
        (torch.randn(5, 3), torch.zeros(5), r"class indices of shape \(5,\), but are torch.float32"),
        (torch.randn(5, 3), torch.zeros(5, 4).long(), "Say what they are with task="),
    ],
)
def test_outputs_and_targets_that_do_not_meet(output: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Multiclass().check(output, targets, "Net")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing should be in"),
        ({"class_weights": [1.0, -1.0]}, "class_weights should be finite"),
        ({"class_weights": [1.0, float("nan")]}, "class_weights should be finite"),
    ],
)
def test_options_that_can_not_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Multiclass(**options)  # type: ignore[arg-type]


def test_one_weight_a_class() -> None:
    with pytest.raises(ArgumentError, match="class_weights are 2, but Net gives 3 scores"):
        Multiclass(class_weights=[1.0, 2.0]).check(torch.randn(5, 3), torch.zeros(5).long(), "Net")


def test_its_record() -> None:
    assert Multiclass(class_weights=[1.0, 0.5]).describe() == {
        "name": "multiclass",
        "ignore_index": -100,
        "class_weights": [1.0, 0.5],
        "label_smoothing": 0.0,
    }
