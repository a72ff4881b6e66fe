from __future__ import annotations

import pytest
import torch
from torchmetrics import Metric

from lightning_ckptkd.information.cmi import cmi_parts
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.information.metrics import ConditionalInformation, GaussianInformation, HeadInformation

N = 1003
IN_TURN = torch.arange(N) % 5
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1)).double()
F = X + torch.randn(N, 3, generator=torch.Generator().manual_seed(2)).double()
LABELS = torch.randint(4, (N,), generator=torch.Generator().manual_seed(3))
LOGITS = 3 * torch.nn.functional.one_hot(LABELS, 4) + torch.randn(N, 4, generator=torch.Generator().manual_seed(4))

CASES = [
    (lambda: GaussianInformation(3, 3), (X, F), lambda: gaussian_gains(X, F, IN_TURN).mean()),
    (lambda: HeadInformation(4), (LOGITS, LABELS), lambda: head_gains(LOGITS, LABELS, IN_TURN).mean()),
    (
        lambda: ConditionalInformation(4),
        (LOGITS.softmax(1), LABELS),
        lambda: cmi_parts(LOGITS.softmax(1), LABELS).mean(),
    ),
]


@pytest.mark.parametrize(("make", "samples", "expected"), CASES, ids=["gaussian", "head", "conditional"])
def test_batches_give_what_all_samples_give(make, samples, expected) -> None:  # type: ignore[no-untyped-def]
    metric: Metric = make()
    for batch in zip(*(torch.split(part, 64) for part in samples), strict=True):
        metric.update(*batch)
    assert float(metric.compute()) == pytest.approx(float(expected()), rel=1e-7)
    metric.reset()
    metric.update(*samples)
    assert float(metric.compute()) == pytest.approx(float(expected()), rel=1e-7)


@pytest.mark.parametrize(("make", "samples", "expected"), CASES, ids=["gaussian", "head", "conditional"])
def test_ranks_add_up(make, samples, expected) -> None:  # type: ignore[no-untyped-def]
    """What torchmetrics does after gathering: it reduces each state by its ``dist_reduce_fx``."""
    whole, parts = make(), [make(), make()]
    for half, metric in enumerate(parts):
        metric.update(*(part[500 * half : 500 * (half + 1)] for part in samples))
    whole.update(*(part[:1000] for part in samples))
    parts[0].merge_state(parts[1])
    assert float(parts[0].compute()) == pytest.approx(float(whole.compute()), rel=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_data_that_are_far_from_zero(offset: float) -> None:
    """Of features that determine X, I(X;F) is that of the noise floor, which sums of raw products would drown."""
    features = X @ torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 1.0], [0.0, 1.0, 3.0]]).double()
    metric, parts = GaussianInformation(3, 3), [GaussianInformation(3, 3), GaussianInformation(3, 3)]
    for number, (x, f) in enumerate(zip(X.split(64), features.split(64), strict=True)):
        metric.update(x + offset, f - offset)
        if number < 14:
            parts[number // 7].update(x + offset, f - offset)
    expected = float(gaussian_gains(X, features, IN_TURN).mean())
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)
    parts[0].merge_state(parts[1])
    known, turns = slice(14 * 64), torch.arange(14 * 64)
    folds = torch.where(turns < 448, turns, turns - 448) % 5
    expected = float(gaussian_gains(X[known], features[known], folds).mean())
    assert float(parts[0].compute()) == pytest.approx(expected, rel=1e-5)


def test_a_step_in_training() -> None:
    """``forward`` gives the batch's own value and adds to the whole."""
    metric = GaussianInformation(3, 3)
    values = [float(metric(x, f)) for x, f in zip(X[:1000].split(100), F[:1000].split(100), strict=True)]
    folds = torch.arange(100) % 5
    # in these hundred samples nothing lies so far out that it would be pulled in, which a stream's sums can't do
    assert values[2] == pytest.approx(float(gaussian_gains(X[200:300], F[200:300], folds).mean()), rel=1e-7)
    expected = float(gaussian_gains(X[:1000], F[:1000], IN_TURN[:1000]).mean())
    assert float(metric.compute()) == pytest.approx(expected, rel=5e-3)
