"""Estimators where the truth is known: ``python -m benchmarks.selection.estimators``.

Bias and spread over seeds, in nats, of the linear-Gaussian decoder, the label estimators and the paper's networks.
With --seeds 5 about eight minutes on one CPU core; ``benchmarks/results/estimators.json`` has every single estimate.
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

from lightning_ckptkd.information.convolutional import convolutional_input_gains, convolutional_label_gains
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.inputs import pool_inputs, principal_components
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.information.logistic import logistic_gains
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out
from lightning_ckptkd.selecting.report import format_table

RESULTS = Path(__file__).parents[1] / "results" / "estimators.json"
FOLDS = 5


@dataclass(frozen=True)
class Case:
    """One estimator on one known distribution.

    Attributes:
        study: The table that it belongs to.
        setting: What is known.
        samples: Number of samples N.
        truth: The true information in nats.
        found: Estimates, one for each seed.
        errors: Their standard errors.
    """

    study: str
    setting: str
    samples: int
    truth: float
    found: list[float]
    errors: list[float]

    def cells(self) -> list[str]:
        """The line of the table."""
        found = torch.tensor(self.found)
        bias = float(found.mean()) - self.truth
        relative = f"{100 * bias / self.truth:+.1f}" if self.truth > 0 else ""
        return [
            self.setting,
            str(self.samples),
            f"{self.truth + 0.0:.3f}",  # no -0.000
            f"{bias:+.3f}",
            relative,
            f"{float(found.std()):.3f}",
            f"{sum(self.errors) / len(self.errors):.3f}",
        ]


HEADER = ["case", "samples", "truth", "bias", "bias %", "spread", "its standard error"]


def main() -> None:
    """Run all studies and print their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    cases = []
    for study in (gaussian, channel, labels, images):
        for case in study(seeds):
            cases.append(case)
            print(" | ".join(case.cells()), flush=True)
    tables = dict.fromkeys(dict.fromkeys(case.study for case in cases), "")
    for name in tables:
        tables[name] = format_table(HEADER, [case.cells() for case in cases if case.study == name])
        print(f"\n{name}\n\n{tables[name]}")
    document = {"tables": tables, "cases": [asdict(case) for case in cases]}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def run(study: str, setting: str, samples: int, truth: float, seeds: range, gains: Callable[[int], Tensor]) -> Case:
    """Estimate once for each seed; ``gains`` draws the samples with a seed and gives what each adds."""
    found, errors = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        values = gains(seed)
        found.append(float(values.mean()))
        errors.append(float(jackknife_error(leave_one_out(values, seed))))
    return Case(study, setting, samples, truth, found, errors)


def gaussian(seeds: range) -> Iterator[Case]:
    """Pairs of normal variables with a correlation rho: -d/2 ln(1 - rho^2)."""
    for dimensions in (1, 4, 16, 64):
        for rho in (0.0, 0.3, 0.6, 0.9):
            for samples in (1000, 5000, 20_000):

                def gains(seed: int, d: int = dimensions, r: float = rho, n: int = samples) -> Tensor:
                    x, noise = torch.randn(2, n, d, dtype=torch.float64)
                    return gaussian_gains(x, r * x + math.sqrt(1 - r * r) * noise, assign_folds(n, FOLDS, seed))

                truth = -dimensions / 2 * math.log(1 - rho**2)
                yield run(
                    "Linear-Gaussian decoder, correlated normal variables",
                    f"d = {dimensions}, rho = {rho}",
                    samples,
                    truth,
                    seeds,
                    gains,
                )


def channel(seeds: range) -> Iterator[Case]:
    """Images of 3 x 224 x 224 that are linear in a few factors, F sees the factors through noise."""
    generator = torch.Generator().manual_seed(0)
    for factors in (16, 64):
        smooth = F.interpolate(torch.randn(factors, 3, 7, 7, generator=generator), size=224, mode="bilinear")

        def gains(seed: int, k: int = factors, basis: Tensor = smooth) -> Tensor:
            z = torch.randn(2000, k)
            pooled = torch.cat(
                [pool_inputs(torch.einsum("nk,kchw->nchw", part, basis)) for part in torch.split(z, 100)]
            )
            x = principal_components(pooled, 64)
            return gaussian_gains(x, z + torch.randn_like(z), assign_folds(2000, FOLDS, seed))

        truth = factors / 2 * math.log(2)
        setting = f"{factors} smooth factors, F = factors + N(0, 1)"
        yield run("Large images, pooled to 14 x 14 and 64 components", setting, 2000, truth, seeds[:3], gains)


def labels(seeds: range) -> Iterator[Case]:
    """Symmetric channels: ln K + (1-e) ln(1-e) + e ln(e/(K-1))."""
    for classes, error in ((10, 0.1), (10, 0.5), (100, 0.3)):
        truth = math.log(classes) + (1 - error) * math.log(1 - error) + error * math.log(error / (classes - 1))
        for samples in (2000, 10_000):
            for name in ("head", "logistic"):

                def gains(seed: int, k: int = classes, e: float = error, n: int = samples, by: str = name) -> Tensor:
                    labels, seen = symmetric_channel(n, k, e)
                    folds = assign_folds(n, FOLDS, seed)
                    if by == "logistic":
                        return logistic_gains(F.one_hot(seen, k).double(), labels, folds)
                    posterior = torch.full((n, k), e / (k - 1)).scatter_(1, seen[:, None], 1 - e)
                    return head_gains(3 * posterior.log(), labels, folds)

                setting = f"{name}, K = {classes}, e = {error}"
                few = seeds[:3] if classes == 100 else seeds  # a probe of 100 classes takes most of a minute
                yield run("Label term, symmetric channel", setting, samples, truth, few, gains)


def images(seeds: range) -> Iterator[Case]:
    """The paper's networks, on pixels and classes of which the truth is known."""
    study = "The paper's networks, 300 steps"
    for samples in (500, 2000):

        def coins(seed: int, n: int = samples) -> Tensor:
            pixels = (torch.rand(n, 1, 8, 8) < 0.5).float()
            maps = (pixels + (torch.rand_like(pixels) < 0.1).float()) % 2
            return convolutional_input_gains(pixels, maps, assign_folds(n, FOLDS, seed), likelihood="bce")

        def normal(seed: int, n: int = samples) -> Tensor:
            pixels = torch.randn(n, 1, 8, 8)
            maps = pixels + 0.5 * torch.randn_like(pixels)
            return convolutional_input_gains(pixels, maps, assign_folds(n, FOLDS, seed), likelihood="gaussian")

        def classes(seed: int, n: int = samples) -> Tensor:
            labels, seen = symmetric_channel(n, 10, 0.1)
            maps = F.one_hot(seen, 10).float()[:, :, None, None].expand(-1, -1, 2, 2)
            return convolutional_label_gains(labels, maps, assign_folds(n, FOLDS, seed))

        coin = 64 * (math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9))
        yield run(study, "decoder, bce, 64 coins, a tenth turned", samples, coin, seeds, coins)
        yield run(study, "decoder, gaussian, 64 pixels, noise 0.5", samples, 32 * math.log(5), seeds, normal)
        yield run(study, "classifier, K = 10, e = 0.1", samples, 1.7578, seeds, classes)


def symmetric_channel(samples: int, classes: int, error: float) -> tuple[Tensor, Tensor]:
    """Labels, and what is seen of them."""
    labels = torch.randint(classes, (samples,))
    wrong = (labels + torch.randint(1, classes, (samples,))) % classes
    return labels, torch.where(torch.rand(samples) < error, wrong, labels)


if __name__ == "__main__":
    main()
