"""How often two standard errors cover the truth: ``python -m benchmarks.selection.coverage``.

The truth is what the estimator tends to on very many samples, which is the information itself only where the model
holds (normal variables, a head that is the posterior). So the table is of the error alone; bias has its own tables.
Two minutes of one CPU core with 200 seeds. ``benchmarks/results/coverage.json`` has every number of the table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.information.logistic import logistic_gains
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out
from lightning_ckptkd.selecting.report import format_table

RESULTS = Path(__file__).parents[1] / "results" / "coverage.json"
HEADER = ["case", "samples", "limit", "bias", "spread", "its standard error", "within 2 of 200"]
LIMIT = 200_000  # samples by which the limit is known, each of four times; fewer where there are many classes
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Coverage:
    """One estimator on one distribution.

    Attributes:
        case: What is known.
        samples: Number of samples N.
        limit: What the estimator tends to, in nats.
        bias: Mean estimate less the limit, in nats.
        spread: Standard deviation of the estimates, in nats.
        error: Mean of the standard errors that are given, in nats.
        covered: Share of the draws whose estimate is within two standard errors of the limit.
    """

    case: str
    samples: int
    limit: float
    bias: float
    spread: float
    error: float
    covered: float

    def cells(self) -> list[str]:
        """The line of the table."""
        numbers = [f"{self.limit:.3f}", f"{self.bias:+.4f}", f"{self.spread:.4f}", f"{self.error:.4f}"]
        return [self.case, str(self.samples), *numbers, f"{100 * self.covered:.1f}%"]


def measure(
    case: str, draw: Callable[[int], Pair], gains: Callable[[Tensor, Tensor, Tensor], Tensor], samples: int, seeds: int
) -> Coverage:
    """Estimate once for each seed.

    Args:
        case: What it is called.
        draw: Gives X or logits, and F or labels, of so many samples.
        gains: The estimator, with folds.
        samples: N.
        seeds: How many.
    """

    def estimate(number: int, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        values = gains(*draw(number), assign_folds(number, 5, seed))
        return float(values.mean()), float(jackknife_error(leave_one_out(values, seed)))

    many = LIMIT // 10 if "K = 100" in case else LIMIT
    limit = sum(estimate(many, 10_000 + seed)[0] for seed in range(4)) / 4
    found, errors = torch.tensor([estimate(samples, seed) for seed in range(seeds)], dtype=torch.float64).T
    covered = float(((found - limit).abs() <= 2 * errors).double().mean())
    return Coverage(
        case, samples, limit, float(found.mean()) - limit, float(found.std()), float(errors.mean()), covered
    )


def cases() -> Iterator[tuple[str, Callable[[int], Pair], Callable[[Tensor, Tensor, Tensor], Tensor], int]]:
    """Name, draw, estimator and samples of each."""
    for name, draw, gains in usual():
        yield name, draw, gains, 2000
    for samples in (200, 500):
        yield "Gaussian decoder, normal, rho = 0.9, d = 4", _seen(torch.randn, 0.9, 4), gaussian_gains, samples
        student = torch.distributions.StudentT(3.0)
        yield "Gaussian decoder, Student-t of 3 degrees", _seen(_shaped(student), 0.8, 1), gaussian_gains, samples
        yield "head, K = 2, e = 0.1, first class 90%", _labels(2, 0.1, 0.9, logits=True), _by_head, samples
        yield "logistic, K = 2, e = 0.1, first class 90%", _labels(2, 0.1, 0.9, logits=False), _by_probe, samples
    yield "Gaussian decoder, normal, rho = 0.9, d = 16", _seen(torch.randn, 0.9, 16), gaussian_gains, 2000
    yield "Gaussian decoder, normal, rho = 0.3, d = 16", _seen(torch.randn, 0.3, 16), gaussian_gains, 2000
    yield "head, K = 100, e = 0.3", _labels(100, 0.3, 0.01, logits=True), _by_head, 2000


def usual() -> Iterator[tuple[str, Callable[[int], Pair], Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Name, draw and estimator of each with a probe set of the usual size."""
    for rho in (0.3, 0.9):
        yield f"Gaussian decoder, normal, rho = {rho}, d = 4", _seen(torch.randn, rho, 4), gaussian_gains
    for degrees in (3.0, 5.0):
        student = torch.distributions.StudentT(degrees)
        yield f"Gaussian decoder, Student-t of {degrees:.0f} degrees", _seen(_shaped(student), 0.8, 1), gaussian_gains
    yield "Gaussian decoder, mixture of two normals, one in 20 of them wide", _seen(_wide, 0.8, 1), gaussian_gains
    yield "Gaussian decoder, two clusters", _seen(_clusters, 0.8, 1), gaussian_gains
    exponential = torch.distributions.Exponential(1.0)
    yield "Gaussian decoder, exponential", _seen(_shaped(exponential), 0.8, 1), gaussian_gains
    yield "Gaussian decoder, one bit, noise 0.3", _bit, gaussian_gains
    for classes, error, first in ((2, 0.001, 0.9), (2, 0.1, 0.9), (2, 0.02, 0.5), (10, 0.1, 0.1), (10, 0.5, 0.1)):
        name = f"K = {classes}, e = {error}, first class {100 * first:.0f}%"
        yield f"head, {name}", _labels(classes, error, first, logits=True), _by_head
        if classes == 2:
            yield f"logistic, {name}", _labels(classes, error, first, logits=False), _by_probe


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    found = []
    for name, draw, gains, samples in cases():
        found.append(measure(name, draw, gains, samples, options.seeds))
        print(" | ".join(found[-1].cells()), flush=True)
    table = format_table([*HEADER[:-1], f"within 2 of {options.seeds}"], [case.cells() for case in found])
    print(f"\n{table}")
    RESULTS.write_text(json.dumps({"seeds": options.seeds, "cases": [asdict(case) for case in found]}, indent=1) + "\n")


def _seen(noise: Callable[[int, int], Tensor], rho: float, dimensions: int) -> Callable[[int], Pair]:
    """X of some distribution, and F that sees it through normal noise as large as if rho were the correlation."""

    def draw(samples: int) -> Pair:
        x = noise(samples, dimensions).double()
        return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(samples, dimensions).double()

    return draw


def _shaped(distribution: torch.distributions.Distribution) -> Callable[[int, int], Tensor]:
    return lambda samples, dimensions: distribution.sample(torch.Size((samples, dimensions)))


def _wide(samples: int, dimensions: int) -> Tensor:
    return torch.randn(samples, dimensions) * torch.where(torch.rand(samples, 1) < 0.05, 5.0, 1.0)


def _clusters(samples: int, dimensions: int) -> Tensor:
    return torch.randn(samples, dimensions) + 6.0 * (torch.rand(samples, 1) < 0.1)


def _bit(samples: int) -> Pair:
    x = (torch.rand(samples, 1) < 0.5).double()
    return x, x + 0.3 * torch.randn(samples, 1).double()


def _labels(classes: int, error: float, first: float, *, logits: bool) -> Callable[[int], Pair]:
    """Labels, the first of them with a share, through a symmetric channel; the posterior's logits, or what is seen."""
    prior = torch.full((classes,), (1 - first) / (classes - 1)).double()
    prior[0] = first

    def draw(samples: int) -> Pair:
        labels = torch.multinomial(prior, samples, replacement=True)
        wrong = (labels + torch.randint(1, classes, (samples,))) % classes
        seen = torch.where(torch.rand(samples) < error, wrong, labels)
        shown = torch.full((samples, classes), error / (classes - 1)).double().scatter_(1, seen[:, None], 1 - error)
        return (shown.log() + prior.log() if logits else F.one_hot(seen, classes).double()), labels

    return draw


def _by_head(logits: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    return head_gains(logits, labels, folds)


def _by_probe(features: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    return logistic_gains(features, labels, folds)


if __name__ == "__main__":
    main()
