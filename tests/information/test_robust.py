"""One outlying sample, or a unit that hardly ever acts, must not decide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_ckptkd.information.convolutional import convolutional_label_gains
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.joint import JointInformation, reduce_features
from lightning_ckptkd.information.label import gaussian_head_gains, head_gains
from lightning_ckptkd.information.logistic import logistic_gains
from lightning_ckptkd.information.robust import deciding_units, outlying_samples, pull_in, winsorise, within_fence

N = 2000
FOLDS = assign_folds(N, 5, 0)


def channel(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, 8) and 128 units of a ReLU layer that sees them through noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 8, generator=generator).double()
    mixed = 0.3 * x @ torch.randn(8, 128, generator=generator).double()
    return x, (mixed + torch.randn(N, 128, generator=generator).double()).relu()


def nats(x: Tensor, f: Tensor) -> float:
    return float(gaussian_gains(x, f, FOLDS).mean())


@pytest.mark.parametrize("times", [30.0, 1e4, -1e8])
@pytest.mark.parametrize("part", ["features", "inputs"])
def test_one_outlying_sample(times: float, part: str) -> None:
    x, f = channel()
    plain = nats(x, f)
    spoilt = (f if part == "features" else x).clone()
    spoilt[7] *= times
    found = nats(x, spoilt) if part == "features" else nats(spoilt, f)
    assert found == pytest.approx(plain, rel=0.05)
    if part == "features":
        assert outlying_samples(spoilt).nonzero().flatten().tolist() == [7]


def test_units_that_are_almost_always_zero() -> None:
    x, f = channel()
    without = nats(x, f[:, 3:])
    f[:, :3] = 0
    members = [int((fold == FOLDS).nonzero()[0]) for fold in (0, 1)]
    f[members[0], :3], f[members[1], :3] = 1e-3, 5.0
    assert nats(x, f) == pytest.approx(without, rel=0.01)
    assert deciding_units(f, FOLDS).nonzero().flatten().tolist() == [0, 1, 2]
    f[members[0], :3] = 4.0
    assert not deciding_units(f, FOLDS).any(), "as those of a healthy ReLU may be"
    joint = JointInformation(x, [reduce_features(f)], None, torch.zeros(N, dtype=torch.long), FOLDS)
    assert float(joint.gains(0)[0].mean()) == pytest.approx(without, rel=0.03)


def test_a_fold_that_has_all_of_what_a_unit_does() -> None:
    """Rounding noise in the folds that fit, and a signal in the one that is scored."""
    x, f = channel()
    without = nats(x, f[:, 1:])
    f[:, 0] = 1e-7 * torch.randn(N).double()
    f[FOLDS == 2, 0] += 5.0
    assert nats(x, f) == pytest.approx(without, rel=0.03)


def test_what_is_not_outlying_stays() -> None:
    normal = torch.randn(N, 20, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(winsorise(normal), normal)
    assert torch.equal(pull_in(normal), normal)
    assert within_fence(normal) is normal
    assert not outlying_samples(normal).any() and not deciding_units(normal, FOLDS).any()
    heavy = torch.distributions.StudentT(3.0).sample((N, 1)).double()
    changed = (winsorise(heavy) != heavy).double().mean()
    assert 0 < float(changed) < 0.01
    assert torch.equal(winsorise(heavy).argsort(0)[20:-20], heavy.argsort(0)[20:-20]), "the order is kept"
    few = torch.tensor([[1.0], [2.0], [30.0]]).double()
    assert torch.isfinite(winsorise(few)).all() and torch.isfinite(pull_in(few)).all()


def test_directions_of_inputs_stay() -> None:
    x = torch.randn(N, 5).double()
    x[3] *= 1e3
    pulled, centre = pull_in(x), x.median(0).values
    assert float((pulled[3] - centre).norm()) < 15
    torch.testing.assert_close(
        torch.nn.functional.normalize(pulled[3] - centre, dim=0), torch.nn.functional.normalize(x[3] - centre, dim=0)
    )


@pytest.mark.parametrize("times", [30.0, 1e6])
def test_the_label_terms(times: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (N,), generator=generator)
    f = torch.nn.functional.one_hot(labels, 3) + 0.7 * torch.randn(N, 3, generator=generator)
    wrong = int(f.argmax(1).ne(labels).nonzero()[0])
    spoilt = f.clone()
    spoilt[wrong] *= times
    for gains in (head_gains, logistic_gains):
        plain = float(gains(f, labels, FOLDS).mean())
        assert float(gains(spoilt, labels, FOLDS).mean()) == pytest.approx(plain, rel=0.03)
    y = torch.randn(N, 2, generator=generator)
    seen = y + 0.5 * torch.randn(N, 2, generator=generator)
    plain = float(gaussian_head_gains(seen, y, FOLDS).mean())
    seen[5] *= times
    assert plain == pytest.approx(-2 * math.log(0.5), abs=0.1)
    assert float(gaussian_head_gains(seen, y, FOLDS).mean()) == pytest.approx(plain, rel=0.1)


def test_an_outlying_feature_map() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=generator)
    maps = torch.nn.functional.one_hot(labels, 3)[:, :, None, None] + 0.5 * torch.randn(
        400, 3, 2, 2, generator=generator
    )
    folds = assign_folds(400, 5, 0)
    plain = float(convolutional_label_gains(labels, maps, folds, steps=60).mean())
    maps[3] *= 1e5
    assert plain > 0.8
    assert float(convolutional_label_gains(labels, maps, folds, steps=60).mean()) > 0.8
