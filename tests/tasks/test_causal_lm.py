from __future__ import annotations

import numpy
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks import CausalLM


def text() -> tuple[Tensor, Tensor]:
    targets = torch.randint(11, (3, 6))
    targets[2, 4:] = -100
    return torch.randn(3, 6, 11, dtype=torch.float64), targets


def costs_by_hand(output: Tensor, targets: Tensor) -> list[float]:
    found = []
    for logits, ids in zip(output.numpy(), targets.tolist(), strict=True):
        for place in range(len(ids) - 1):
            if ids[place + 1] != -100:
                found.append(-log_softmax(logits[place])[ids[place + 1]])
    return found


def test_each_place_is_asked_for_the_next_token() -> None:
    output, targets = text()
    task = CausalLM()
    task.check(output, targets, "Net")
    rows = task.rows(output, output[None], targets)
    assert rows.teachers is not None
    assert rows.student.shape == (13, 11) and rows.teachers.shape == (1, 13, 11)
    loss = task.hard_loss(rows.student, rows.targets)
    assert float(loss) == pytest.approx(numpy.mean(costs_by_hand(output, targets)), rel=1e-12)
    assert task.labelled(targets).samples.tolist() == [0] * 5 + [1] * 5 + [2] * 3


def test_metrics_by_hand() -> None:
    task = CausalLM()
    metrics = task.metrics(11)
    costs, right = [], []
    for _ in range(2):
        output, targets = text()
        rows = task.rows(output, None, targets)
        for metric in metrics.values():
            metric(rows.student, rows.targets)
        costs += costs_by_hand(output, targets)
        right += (rows.student.argmax(1) == rows.targets).tolist()
    assert list(metrics) == ["acc", "perplexity"]
    assert float(metrics["acc"].compute()) == pytest.approx(numpy.mean(right))
    assert float(metrics["perplexity"].compute()) == pytest.approx(numpy.exp(numpy.mean(costs)), rel=1e-5)


def test_perplexity_of_a_token_that_is_most_unlikely() -> None:
    metric = CausalLM().metrics(3)["perplexity"]
    logits = torch.tensor([[0.0, 0.0, 0.0]] * 9 + [[0.0, -200.0, -200.0]])
    metric.update(logits, torch.tensor([1] * 10))
    assert float(metric.compute()) == pytest.approx(numpy.exp((9 * numpy.log(3) + 200) / 10), rel=1e-4)


def test_one_token_predicts_nothing() -> None:
    with pytest.raises(ArgumentError, match="two tokens or more"):
        CausalLM().check(torch.randn(3, 1, 11), torch.zeros(3, 1).long(), "Net")
    CausalLM().check(torch.randn(3, 2, 11), torch.zeros(3, 2).long(), "Net")
