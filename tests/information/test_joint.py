from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.joint import JointInformation, count_best, grow_set, reduce_features
from lightning_ckptkd.information.label import head_gains

N = 2000
FOLDS = assign_folds(N, 5, 0)
LABELS = torch.randint(3, (N,), generator=torch.Generator().manual_seed(0))


def views(x: Tensor, *parts: slice, noise: float = 0.3) -> list[Tensor]:
    """Features that show some of the dimensions each."""
    return [reduce_features(x[:, part] + noise * torch.randn_like(x[:, part])) for part in parts]


def nats(joint: JointInformation, candidate: int | None = None) -> float:
    return float(joint.gains(candidate)[0].mean())


def test_the_set_is_the_decoder_of_the_stacked_features() -> None:
    x = torch.randn(N, 6).double()
    features = views(x, slice(0, 3), slice(2, 5), slice(4, 6))
    joint = JointInformation(x, features, None, LABELS, FOLDS)
    for size in (1, 2, 3):
        before = nats(joint, size - 1)
        joint.add(size - 1)
        stacked = torch.cat(features[:size], 1)
        assert nats(joint) == pytest.approx(before, rel=1e-9), "the same, asked for before it joined and after"
        assert nats(joint) == pytest.approx(float(gaussian_gains(x, stacked, FOLDS).mean()), rel=0.01)


def test_the_order_of_joining_does_not_matter() -> None:
    x = torch.randn(N, 6).double()
    features = views(x, slice(0, 3), slice(2, 5), slice(4, 6))
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        joint = JointInformation(x, features, None, LABELS, FOLDS)
        for member in order:
            joint.add(member)
        found.append(nats(joint))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_twin_adds_nothing_and_another_view_much() -> None:
    x = torch.randn(N, 6).double()
    first, other = views(x, slice(0, 4), slice(4, 6))
    twin = first + 0.01 * torch.randn_like(first)
    joint = JointInformation(x, [first, twin, other], None, LABELS, FOLDS)
    joint.add(0)
    alone = nats(joint)
    assert nats(joint, 1) == pytest.approx(alone, abs=0.05)
    assert nats(joint, 2) > alone + 1


def test_greedy_takes_what_is_new_and_stops_where_nothing_is() -> None:
    x = torch.randn(N, 6).double()
    first, other = views(x, slice(0, 4), slice(4, 6))
    twins = [first + 0.01 * torch.randn_like(first) for _ in range(3)]
    features = [first, *twins, other, torch.randn(N, 4).double()]
    joint = JointInformation(x, features, None, LABELS, FOLDS)
    steps = grow_set(joint, 0, 2, (1.0, 1.0), 0)
    assert [step.member for step in steps] == [0, 4]
    assert steps[1].gain == pytest.approx(steps[1].input_information - steps[0].input_information)
    joint = JointInformation(x, features, None, LABELS, FOLDS)
    members = [step.member for step in grow_set(joint, 0, None, (1.0, 1.0), 0)]
    assert members[:2] == [0, 4]
    assert len(members) < len(features)


def logits_of_teachers(*noises: float) -> list[Tensor]:
    """Logits of the labels, each teacher with noise of its own of that size."""
    return [2 * torch.nn.functional.one_hot(LABELS, 3) + noise * torch.randn(N, 3) for noise in noises]


def numbers(*noises: float) -> tuple[int, int]:
    """The fewest and the most of teachers that tell what the best number of them tells."""
    logits = logits_of_teachers(*noises)
    x, features = torch.randn(N, 2).double(), [torch.randn(N, 2).double() for _ in logits]
    steps = [
        count_best(JointInformation(x, features, logits, LABELS, FOLDS), (0.0, 1.0), 0, most=6, fewest=fewest)
        for fewest in (True, False)
    ]
    assert all([step.member for step in some] == list(range(len(some))) for some in steps), "the best, in order"
    return len(steps[0]), len(steps[1])


def test_how_many_of_the_best_to_take() -> None:
    assert numbers(1.0, 1.0, 8.0, 8.0) == (2, 2), "what harms the set is left out"
    assert numbers(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0) == (6, 6), "each helps, and six are the most"
    alone = logits_of_teachers(1.0)[0]
    joint = JointInformation(torch.randn(N, 2).double(), [torch.randn(N, 2).double()] * 3, [alone] * 3, LABELS, FOLDS)
    assert len(count_best(joint, (0.0, 1.0), 0, fewest=True)) == 1, "twins add nothing"


def test_the_label_term_is_that_of_the_mean_logits() -> None:
    x = torch.randn(N, 2).double()
    logits = [2 * torch.nn.functional.one_hot(LABELS, 3) + torch.randn(N, 3) for _ in range(3)]
    joint = JointInformation(x, [torch.randn(N, 2).double() for _ in range(3)], logits, LABELS, FOLDS)
    joint.add(0)
    joint.add(1)
    together = float(joint.gains(2)[1].mean())
    mean = (logits[0] + logits[1] + logits[2]) / 3
    assert together == pytest.approx(float(head_gains(mean, LABELS, FOLDS).mean()), rel=0.02)
    assert together > float(head_gains(logits[0], LABELS, FOLDS).mean()) + 0.1


def test_reduced_features() -> None:
    features = torch.cat([100 * torch.randn(500, 3), torch.full((500, 2), 7.0)], 1)
    reduced = reduce_features(features)
    assert reduced.shape == (500, 3)
    torch.testing.assert_close(reduced.square().mean(0), torch.ones(3).double())
    wide = torch.randn(500, 10) @ torch.randn(10, 300)
    assert reduce_features(wide).shape == (500, 128)


def test_forty_snapshots_of_128_features() -> None:
    x = torch.randn(N, 64).double()
    features = [reduce_features(x @ torch.randn(64, 128).double() + 20 * torch.randn(N, 128)) for _ in range(40)]
    joint = JointInformation(x, features, None, LABELS, FOLDS)
    steps = grow_set(joint, 0, 4, (1.0, 0.0), 0)
    assert [step.input_information for step in steps] == sorted(step.input_information for step in steps)


def test_a_gain_within_its_error_is_none() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(500, 2, generator=generator).double()
    told = reduce_features(x + 0.3 * torch.randn(500, 2, generator=generator))
    noise = reduce_features(torch.randn(500, 1, generator=generator).double())
    found = []
    for count in (2, None):
        joint = JointInformation(x, [told, noise], None, torch.zeros(500).long(), assign_folds(500, 5, 0))
        found.append(grow_set(joint, 0, count, (1.0, 0.0), 0))
    assert 0 < found[0][1].gain < found[0][1].gain_error, "a gain there is, by chance"
    assert [step.member for step in found[1]] == [0]


def test_a_fold_is_not_in_its_own_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(1000, 2, generator=generator).double()
    folds = torch.arange(1000) % 5
    noise = torch.randn(1000, 2, generator=generator).double() * torch.where(folds == 0, 10, 0.1)[:, None]
    joint = JointInformation(f + noise, [reduce_features(f)], None, torch.zeros(1000).long(), folds)
    assert float(joint.gains(0)[0][folds == 0].mean()) < -500, "100 times the noise that the other folds have"
