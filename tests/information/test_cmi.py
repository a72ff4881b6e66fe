from __future__ import annotations

import math

import pytest
import torch

from lightning_ckptkd.information.cmi import cmi_parts


def test_predictions_that_know_the_label_only_tell_nothing_beyond_it() -> None:
    labels = torch.randint(5, (200,))
    predictions = torch.rand(5, 5).softmax(1)[labels]
    torch.testing.assert_close(
        cmi_parts(predictions, labels), torch.zeros(200, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_two_halves_of_a_class_that_are_told_apart() -> None:
    """Z says which half of the class x is from: one bit that the label does not hold."""
    labels = torch.arange(2).repeat_interleave(100)
    halves = torch.arange(2).repeat(100)
    predictions = torch.nn.functional.one_hot(2 * labels + halves, 4).double()
    assert float(cmi_parts(predictions, labels).mean()) == pytest.approx(math.log(2))


def test_it_is_the_information_of_the_joint_distribution() -> None:
    predictions, labels = torch.randn(300, 4).double().softmax(1), torch.randint(3, (300,))
    total = 0.0
    for label in range(3):
        rows = predictions[labels == label]
        entropy = torch.special.entr(rows.mean(0)).sum() - torch.special.entr(rows).sum(1).mean()
        total += float(entropy) * len(rows) / 300
    assert float(cmi_parts(predictions, labels).mean()) == pytest.approx(total)
    assert (cmi_parts(predictions, labels) > -1e-12).all()
