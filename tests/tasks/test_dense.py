from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.by_sample import gains_by_sample
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.losses import KDLoss, LogitLoss, MSELoss
from lightning_ckptkd.tasks import Dense, Task, Tokens


def dense_batch() -> tuple[Tensor, Tensor]:
    targets = torch.randint(5, (3, 6, 4))
    targets[0, :2] = 255
    targets[2] = 255  # a sample without any label
    return torch.randn(3, 5, 6, 4, dtype=torch.float64), targets


def token_batch() -> tuple[Tensor, Tensor]:
    targets = torch.randint(5, (3, 7))
    targets[1, 3:] = 255
    return torch.randn(3, 7, 5, dtype=torch.float64), targets


CASES = [(Dense(ignore_index=255), dense_batch), (Tokens(ignore_index=255), token_batch)]


@pytest.mark.parametrize(("task", "make"), CASES)
def test_rows_are_the_valid_places_in_order(task: Task, make: type) -> None:
    output, targets = make()
    task.check(output, targets, "Net")
    last = output.movedim(1, -1) if task.name == "dense" else output
    valid = targets != 255
    rows = task.rows(output, torch.stack([output, 2 * output]), targets.to(torch.uint8))
    assert torch.equal(rows.student, last[valid])
    assert rows.teachers is not None
    assert torch.equal(rows.teachers, torch.stack([last[valid], 2 * last[valid]]))
    assert torch.equal(rows.targets, targets[valid])
    known = task.labelled(targets)
    assert torch.equal(task.flatten(output)[known.places], rows.student)
    assert torch.equal(known.samples, valid.nonzero()[:, 0])
    some = known.take(torch.tensor([0, 5]))
    assert len(some) == 2 and torch.equal(some.targets, rows.targets[[0, 5]])


@pytest.mark.parametrize(("task", "make"), CASES)
def test_losses_are_means_over_valid_places(task: Task, make: type) -> None:
    output, targets = make()
    teacher = torch.randn_like(output)
    rows = task.rows(output, teacher[None], targets)
    last = (output.movedim(1, -1) if task.name == "dense" else output)[targets != 255].numpy()
    taught = (teacher.movedim(1, -1) if task.name == "dense" else teacher)[targets != 255].numpy()
    labels = targets[targets != 255].numpy()
    costs = -log_softmax(last, 1)[numpy.arange(len(labels)), labels]
    assert float(task.hard_loss(rows.student, rows.targets)) == pytest.approx(costs.mean(), rel=1e-12)
    q, p = log_softmax(last / 4, 1), log_softmax(taught / 4, 1)
    expected = 16 * (numpy.exp(p) * (p - q)).sum(1).mean()
    assert rows.teachers is not None
    assert float(task.kd_loss(4.0)(rows.student, rows.teachers)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("task", "make"), CASES)
def test_gradients_reach_the_output(task: Task, make: type) -> None:
    output, targets = make()
    teacher = torch.randn_like(output)[None]

    def loss(student: Tensor) -> Tensor:
        rows = task.rows(student, teacher, targets)
        found: Tensor = task.hard_loss(rows.student, rows.targets) + task.kd_loss(3.0)(rows.student, rows.teachers)
        return found

    assert torch.autograd.gradcheck(loss, output.requires_grad_())


@pytest.mark.parametrize(("task", "make"), CASES)
def test_a_batch_without_any_label_costs_nothing(task: Task, make: type) -> None:
    output, targets = make()
    rows = task.rows(output.requires_grad_(), output.detach()[None], torch.full_like(targets, 255))
    assert rows.teachers is not None and len(rows.student) == 0
    loss = task.hard_loss(rows.student, rows.targets) + task.kd_loss(2.0)(rows.student, rows.teachers)
    loss.backward()
    assert float(loss.detach()) == 0
    assert output.grad is not None and bool((output.grad == 0).all())
    metrics = task.metrics(5)
    for metric in metrics.values():
        metric(rows.student.detach(), rows.targets)  # as a step that logs would
    with pytest.raises(ArgumentError, match="ignore_index=255 is the target of all"):
        task.check_targets(task.flatten_targets(torch.full_like(targets, 255)), 5)


def test_all_places_are_valid() -> None:
    output, targets = torch.randn(2, 5, 3, 3), torch.randint(5, (2, 3, 3))
    assert Dense().kept(Dense().flatten_targets(targets)) is None
    assert len(Dense().rows(output, None, targets).student) == 18


@pytest.mark.parametrize("options", [{"class_weights": [1.0, 2.0, 0.0, 3.0, 1.0]}, {"label_smoothing": 0.3}])
def test_options_of_the_hard_loss(options: dict[str, object]) -> None:
    output, targets = dense_batch()
    task = Dense(ignore_index=255, **options)  # type: ignore[arg-type]
    rows = task.rows(output, None, targets)
    torchs = {"weight" if name == "class_weights" else name: value for name, value in options.items()}
    if "weight" in torchs:
        torchs["weight"] = torch.tensor(torchs["weight"], dtype=torch.float64)
    expected = F.cross_entropy(output, targets, ignore_index=255, **torchs)  # type: ignore[arg-type]
    torch.testing.assert_close(task.hard_loss(rows.student, rows.targets), expected, rtol=1e-12, atol=0)


def test_one_spatial_dimension_and_three() -> None:
    Dense().check(torch.randn(2, 5, 8), torch.zeros(2, 8).long(), "Net")
    Dense().check(torch.randn(2, 5, 2, 3, 4), torch.zeros(2, 1, 2, 3, 4).long(), "Net")
    output = torch.randn(2, 5, 2, 3, 4)
    assert torch.equal(Dense().flatten(output)[7], output[0, :, 0, 1, 3])


def test_metrics_are_scikit_learns() -> None:
    task = Dense(ignore_index=255)
    metrics = task.metrics(5)
    seen, truth = [], []
    for _ in range(3):
        output, targets = dense_batch()
        targets[targets == 4] = 0  # a class that only the network knows
        rows = task.rows(output, None, targets)
        for metric in metrics.values():
            metric(rows.student, rows.targets)
        seen.append(rows.student.argmax(1))
        truth.append(rows.targets)
    predicted, labels = torch.cat(seen).numpy(), torch.cat(truth).numpy()
    assert list(metrics) == ["acc", "miou"]
    assert float(metrics["acc"].compute()) == pytest.approx(accuracy_score(labels, predicted))
    assert float(metrics["miou"].compute()) == pytest.approx(jaccard_score(labels, predicted, average="macro"))


def test_a_symmetric_channel_of_pixels_and_its_error() -> None:
    """Samples differ in their number of valid pixels; the value of each has the term for its mean."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(3, (200, 6, 6), generator=generator)
    targets[torch.arange(200) % 4 == 0, 2:] = 255
    seen = torch.where(torch.rand(targets.shape, generator=generator) < 0.2, (targets % 3 + 1) % 3, targets % 3)
    output = torch.full((200, 3, 6, 6), 1e-3).scatter_(1, seen[:, None], 0.8)
    output = (output + 0.2 * F.one_hot((seen - 1) % 3, 3).movedim(-1, 1)).log()  # the posterior, not normalised
    task = Dense(ignore_index=255)
    known = task.labelled(targets)
    folds = assign_folds(200, 5, 0)[known.samples]
    gains = task.label_gains(task.flatten(output)[known.places], known.targets, folds, known.units)
    values = gains_by_sample(gains, known.samples, 200, known.units)
    truth = math.log(3) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)
    entropy = task.label_entropy(known.targets, known.units)
    assert values.shape == (200,)
    assert float(values.mean()) == pytest.approx(float(gains.mean()), rel=1e-12)
    assert float(values.mean()) == pytest.approx(truth, abs=4 * float(values.std()) / math.sqrt(200))
    assert entropy is not None and float(values.mean()) <= entropy <= math.log(3)
    means = [float(gains[known.samples == sample].mean()) for sample in range(200)]
    assert numpy.std(means) > 0


@pytest.mark.parametrize(
    ("task", "output", "targets", "message"),
    [
        (Dense(), (2, 5, 4, 4), (2, 8, 8), r"need targets of class indices of shape \(2, 4, 4\)"),
        (Dense(), (2, 1, 4, 4), (2, 4, 4), "Use task='binary'"),
        (Dense(), (2, 5), (2,), "Use task='multiclass'"),
        (Tokens(), (2, 7, 5), (2, 6), r"of shape \(2, 7\), but these are torch.int64 of shape \(2, 6\)"),
        (Tokens(), (2, 5), (2,), "Use task='multiclass'"),
        (Tokens(), (2, 7, 1), (2, 7), "Use task='binary'"),
    ],
)
def test_outputs_and_targets_that_do_not_meet(
    task: Task, output: tuple[int, ...], targets: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        task.check(torch.randn(output), torch.zeros(targets).long(), "Net")


@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 2.0, 0.5, 1.0, 3.0], "label_smoothing": 0.1}])
@pytest.mark.parametrize("weights", [None, torch.tensor([3.0, 1.0])])
@pytest.mark.parametrize("kd_loss", [KDLoss(3.0), KDLoss(20.0), KDLoss(3.0, "probabilities"), MSELoss()])
def test_planes_lose_what_rows_lose(kd_loss: LogitLoss, weights: Tensor | None, options: dict[str, Any]) -> None:
    """In value and gradient, whatever the share of pixels without a label."""
    task = Dense(ignore_index=255, **options)
    output, targets = dense_batch()
    for labels in (targets, targets.where(targets != 255, 0), torch.full_like(targets, 255)):
        found = []
        for laid_out in (task.rows, super(Dense, task).rows):
            student = output.clone().requires_grad_()
            rows = laid_out(student, torch.stack([output.flip(0), output.roll(1, 1)]), labels)
            assert rows.num_classes == 5 and rows.is_taught
            distilled = task.distilled(kd_loss, rows, weights)
            loss = distilled + task.taught(rows)
            loss.backward()
            assert student.grad is not None
            found.append((loss.detach(), student.grad))
        torch.testing.assert_close(found[0], found[1])


def test_planes_give_a_contiguous_gradient() -> None:
    """A convolution's backward pass is slower on one that lies as rows do."""
    output, targets = dense_batch()
    seen: list[Tensor] = []
    student = output.requires_grad_()
    through = student * 1
    through.register_hook(seen.append)
    task = Dense(ignore_index=255)
    rows = task.rows(through, output.detach()[None], targets)
    (task.distilled(KDLoss(), rows) + task.taught(rows)).backward()
    assert seen[0].is_contiguous()


def test_channels_last_and_tasks_of_the_users_are_laid_out_in_rows() -> None:
    class Own(Dense):
        def hard_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return 2 * super().hard_loss(logits, targets)

    output, targets = dense_batch()
    plain = Dense(ignore_index=255)
    last = output.to(memory_format=torch.channels_last)
    expected = plain.taught(plain.rows(output, None, targets))
    torch.testing.assert_close(plain.taught(plain.rows(last, None, targets)), expected)
    own = Own(ignore_index=255)
    torch.testing.assert_close(own.taught(own.rows(output, None, targets)), 2 * expected)
