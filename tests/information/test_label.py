from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from lightning_ckptkd.information.by_sample import gains_by_sample
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.label import (
    TEMPERATURES,
    accuracy,
    gaussian_head_gains,
    head_gains,
    label_entropy,
    tempered_costs,
)
from lightning_ckptkd.information.logistic import _fit, logistic_gains


def symmetric_channel(samples: int, classes: int, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (samples,))
    wrong = (labels + torch.randint(1, classes, (samples,))) % classes
    return labels, torch.where(torch.rand(samples) < error, wrong, labels)


def truth_of(classes: int, error: float) -> float:
    return math.log(classes) + (1 - error) * math.log(1 - error) + error * math.log(error / (classes - 1))


def by_head(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(head_gains(logits, labels, assign_folds(len(labels), 5, 0)).mean())


def by_probe(features: torch.Tensor, labels: torch.Tensor) -> float:
    return float(logistic_gains(features, labels, assign_folds(len(labels), 5, 0)).mean())


def test_the_closed_form() -> None:
    assert truth_of(10, 0.1) == pytest.approx(1.7578, abs=1e-4)


@pytest.mark.parametrize(("classes", "error"), [(10, 0.1), (10, 0.4), (3, 0.2)])
def test_logistic_probe_on_a_symmetric_channel(classes: int, error: float) -> None:
    labels, seen = symmetric_channel(10_000, classes, error)
    gains = logistic_gains(F.one_hot(seen, classes).float(), labels, assign_folds(10_000, 5, 0))
    truth, deviation = truth_of(classes, error), 2 * float(gains.std()) / 100
    assert float(gains.mean()) == pytest.approx(truth, abs=0.02 * truth if error == 0.1 else deviation)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_head_on_a_symmetric_channel_whatever_its_confidence(temperature: float) -> None:
    labels, seen = symmetric_channel(10_000, 10, 0.1)
    posterior = torch.full((10_000, 10), 0.1 / 9).scatter_(1, seen[:, None], 0.9)
    assert by_head(temperature * posterior.log(), labels) == pytest.approx(truth_of(10, 0.1), rel=0.02)


@pytest.mark.parametrize("shares", [False, True])
def test_costs_of_all_temperatures_are_those_of_each(shares: bool) -> None:
    """They are found by squaring one after another, also where most of e^(z / T) is below the smallest number."""
    logits = torch.randn(40, 3000) * torch.logspace(-2, 2, 40)[:, None]
    labels = torch.randint(3000, (40,))
    truth = torch.rand(40, 3000).softmax(1) if shares else labels
    temperatures = (*TEMPERATURES, 3.0, 1.5)
    wide, target = logits.double(), truth.double() if shares else truth
    expected = torch.stack([F.cross_entropy(wide / t, target, reduction="none") for t in temperatures], 1)
    torch.testing.assert_close(tempered_costs(logits, truth, temperatures), expected, rtol=1e-12, atol=1e-12)


def test_useless_features_tell_nothing() -> None:
    labels = torch.randint(4, (800,))
    assert abs(by_probe(torch.randn(800, 50), labels)) < 0.05
    assert -0.05 < by_head(torch.randn(800, 4), labels) < 0.02


def test_never_above_the_label_entropy() -> None:
    labels = torch.randint(10, (500,))
    sure = 1e4 * F.one_hot(labels, 10).double()
    assert 0.95 * label_entropy(labels) < by_probe(sure, labels) <= label_entropy(labels)
    assert by_head(sure, labels) == pytest.approx(label_entropy(labels))
    assert by_head(sure, labels) <= label_entropy(labels)


def test_a_function_of_the_features_tells_no_more() -> None:
    features = torch.randn(3000, 5)
    labels = (2 * features[:, :3] + torch.randn(3000, 3)).argmax(1)
    whole = by_probe(features, labels)
    assert by_probe(features[:, :2], labels) < whole
    assert by_probe(features + torch.randn_like(features), labels) < whole
    assert by_probe(features @ torch.randn(5, 5), labels) == pytest.approx(whole, rel=0.02)


def test_accuracy() -> None:
    assert accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)


def test_label_entropy() -> None:
    assert label_entropy(torch.arange(8)) == pytest.approx(math.log(8))
    assert label_entropy(torch.tensor([3, 3, 3])) == 0


def test_the_probe_is_the_one_that_scikit_learn_finds() -> None:
    features = torch.randn(300, 4).double()
    labels = (features @ torch.randn(4, 3).double() + torch.randn(300, 3)).argmax(1)
    penalty = 0.01
    ours = _fit(features, labels, torch.zeros(5, 3).double(), penalty)
    theirs = LogisticRegression(C=1 / (penalty * 300), tol=1e-10, max_iter=1000).fit(features, labels)
    ours_p = torch.softmax(features @ ours[:-1] + ours[-1], 1)
    torch.testing.assert_close(ours_p, torch.from_numpy(theirs.predict_proba(features)), atol=1e-4, rtol=0)


def test_a_class_that_a_fold_lacks() -> None:
    labels = torch.cat([torch.zeros(99, dtype=torch.long), torch.ones(1, dtype=torch.long)])
    assert math.isfinite(by_probe(torch.randn(100, 3), labels))


def test_shares_are_labels_that_are_not_sure() -> None:
    logits, shares = torch.randn(60, 4).double(), torch.randn(60, 4).double().softmax(1)
    by_class = torch.stack([tempered_costs(logits, torch.full((60,), label)) for label in range(4)], 1)
    torch.testing.assert_close(tempered_costs(logits, shares), (shares[..., None] * by_class).sum(1))
    assert label_entropy(shares) == pytest.approx(float(torch.special.entr(shares.mean(0)).sum()))
    assert float(head_gains(logits, shares, assign_folds(60, 5, 0)).mean()) <= label_entropy(shares)


def test_many_classes_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    whole = tempered_costs(logits, labels)
    monkeypatch.setattr("lightning_ckptkd.information.blocks.AT_ONCE", 7 * 8)
    assert torch.equal(tempered_costs(logits, labels), whole)


def test_a_single_fold_has_no_other_to_fit_a_temperature() -> None:
    logits, labels = torch.randn(50, 3), torch.randint(3, (50,))
    gains = head_gains(logits, labels, torch.zeros(50).long())
    plain = label_entropy(labels) - float(F.cross_entropy(logits.double(), labels))
    assert float(gains.mean()) == pytest.approx(plain)
    assert bool(gaussian_head_gains(logits, logits + 1, torch.zeros(50).long()).isfinite().all())


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_a_gaussian_channel(rho: float) -> None:
    features = torch.randn(20_000, 2)
    targets = rho * features + math.sqrt(1 - rho**2) * torch.randn(20_000, 2)
    gains = gaussian_head_gains(rho * features, targets, assign_folds(20_000, 5, 0))
    truth = -math.log(1 - rho**2)  # of two dimensions
    assert float(gains.mean()) == pytest.approx(truth, abs=3 * float(gains.std()) / math.sqrt(20_000))
    shifted = gaussian_head_gains(1e4 + 50 * rho * features, 1e4 + 50 * targets, assign_folds(20_000, 5, 0))
    assert float(shifted.mean()) == pytest.approx(float(gains.mean()), abs=1e-3)  # of float32 inputs


def test_gains_by_sample_have_the_sum_of_the_units_means_for_their_mean() -> None:
    samples, units = torch.randint(30, (200,)), torch.randint(3, (200,))
    samples[samples == 7] = 8  # one without a row
    gains = torch.randn(200)
    expected = sum(float(gains[units == unit].double().mean()) for unit in range(3))
    values = gains_by_sample(gains, samples, 30, units)
    assert values.shape == (30,) and values.dtype == torch.float64
    assert float(values.mean()) == pytest.approx(expected, rel=1e-12)
    assert float(values[7]) == pytest.approx(expected, rel=1e-12)
    alone = gains_by_sample(gains, torch.arange(200), 200)
    torch.testing.assert_close(alone, gains.double())


def test_the_error_over_samples_is_that_of_a_ratio_of_sums() -> None:
    """Samples of very different sizes, whose rows are alike: what the sizes are adds nothing to the error."""
    sizes = torch.randint(1, 40, (500,))
    samples = torch.arange(500).repeat_interleave(sizes)
    values = gains_by_sample(torch.full((len(samples),), 2.0), samples, 500)
    torch.testing.assert_close(values, torch.full((500,), 2.0, dtype=torch.float64))
    means = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 40, (300,), generator=generator)
        samples = torch.arange(300).repeat_interleave(sizes)
        gains = torch.randn(300, generator=generator)[samples]  # rows of a sample go together
        means.append(float(gains.mean()))
    last = gains_by_sample(gains, samples, 300)
    assert float(last.std()) / math.sqrt(300) == pytest.approx(float(torch.tensor(means).std()), rel=0.2)


def test_costs_are_those_of_logits_divided_by_each_temperature() -> None:
    logits, labels = 3 * torch.randn(50, 4), torch.randint(4, (50,))
    costs = tempered_costs(logits, labels, (0.5, 1.0, 8.0))
    for column, temperature in enumerate((0.5, 1.0, 8.0)):
        expected = F.cross_entropy(logits.double() / temperature, labels, reduction="none")
        torch.testing.assert_close(costs[:, column], expected)


def test_numbers_of_a_fold_are_judged_by_the_errors_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(500, 1, generator=generator)
    folds = torch.arange(500) % 5
    predictions = targets + torch.where(folds == 0, 10, 0.1)[:, None] * torch.randn(500, 1, generator=generator)
    assert float(gaussian_head_gains(predictions, targets, folds)[folds == 0].mean()) < -1000


def test_the_probe_does_not_learn_the_samples_that_it_is_scored_on() -> None:
    """Of labels that are drawn at random there is nothing to know but by heart."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 60, generator=generator), torch.randint(2, (200,), generator=generator)
    assert float(logistic_gains(features, labels, assign_folds(200, 5, 0)).mean()) < 0
