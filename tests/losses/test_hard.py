from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_ckptkd.losses.hard import binary_cross_entropy, cross_entropy


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 2.5])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [None, -1, 2])
def test_cross_entropy_is_torchs(weights: torch.Tensor | None, smoothing: float, ignored: int | None) -> None:
    logits, targets = torch.randn(30, 3), torch.randint(3, (30,))
    if ignored == -1:
        targets[:4] = -1
    found = cross_entropy(logits, targets, weights, ignored, smoothing)
    expected = F.cross_entropy(
        logits, targets, weights, ignore_index=-100 if ignored is None else ignored, label_smoothing=smoothing
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_rows_in_16_bits(dtype: torch.dtype) -> None:
    logits, targets = torch.zeros(100_000, 2, dtype=dtype), torch.zeros(100_000).long()
    assert float(cross_entropy(logits, targets)) == pytest.approx(0.6931, abs=1e-3)
    assert float(binary_cross_entropy(logits[:, 0], targets)) == pytest.approx(0.6931, abs=1e-3)


def test_binary_cross_entropy_is_torchs() -> None:
    logits, targets = torch.randn(12), torch.randint(2, (12,))
    weights = torch.tensor([1.0, 2.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(
        logits.reshape(4, 3), targets.reshape(4, 3).float(), pos_weight=weights
    )
    torch.testing.assert_close(binary_cross_entropy(logits, targets, weights), expected)


def test_no_rows_at_all() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    for loss in (
        cross_entropy(logits, torch.zeros(0).long()),
        cross_entropy(logits, torch.zeros(0, 3)),
        binary_cross_entropy(logits[:, 0], torch.zeros(0).long(), ignore_index=-1),
    ):
        assert float(loss.detach()) == 0
        loss.backward()
