"""The probe set as its task lays it out: which rows are scored, their targets, and the sample of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.by_sample import gains_by_sample, values_by_sample
from lightning_ckptkd.information.folds import NUM_FOLDS, assign_folds
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.score import Term, num_groups
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch, split

MOST_ROWS = 64  # of a sample, of which logits are kept
_MIXER = 2654435761  # Knuth's multiplier: samples of one seed have none of another's draws
_MOST_NUMBERS = 2**26  # of all logits that are kept: 256 MiB in float32


@dataclass(frozen=True)
class Part:
    """A batch that the network runs in one go.

    Attributes:
        batch: On the CPU.
        targets: Of all P rows of its outputs, shape (P,) or (P, K).
        valid: Rows that have a target, shape (P,), bool; None for all.
        samples: Sample of each row, counted over the probe set, shape (P,).
        units: What each row is about, shape (P,); None where all are about the same.
        kept: Rows whose logits are kept, indices into the P; None for all.
    """

    batch: Batch
    targets: Tensor
    valid: Tensor | None
    samples: Tensor
    units: Tensor | None
    kept: Tensor | None


@dataclass(frozen=True)
class ProbeRows:
    """What a rule sees of the probe set.

    A sample of plain classification is one row. Where a sample has many (pixels, tokens), the logits of at most 64 of
    them are kept, drawn with the seed, the same ones for each snapshot; hits are counted on all.

    Attributes:
        probe: The samples.
        task: What their targets are.
        num_classes: K; None where the network gives no logits.
        seed: Of the draw, the folds and the jackknife's groups.
        parts: What the network runs, one after another.
        targets: Of the rows whose logits are kept, shape (R,) or (R, K).
        samples: Sample of each of them, shape (R,); None where each of the N samples is one row.
        units: What each of them is about, shape (R,), where a sample has several things to tell of (its labels).
        counts: Number of rows with a target of each sample, shape (N,).
        folds: Fold of each sample, shape (N,).
    """

    probe: Probe
    task: Task
    num_classes: int | None
    seed: int
    parts: tuple[Part, ...]
    targets: Tensor
    samples: Tensor | None
    units: Tensor | None
    counts: Tensor
    folds: Tensor

    @classmethod
    def of(cls, probe: Probe, task: Task, num_classes: int | None, batch_size: int, seed: int) -> ProbeRows:
        """Lay out a probe set.

        Args:
            probe: The samples.
            task: What their targets are.
            num_classes: K; None where the network gives no logits.
            batch_size: Samples that run in one go, where batches can be cut.
            seed: See above.

        Raises:
            ArgumentError: If a target is not one of the task's, or none has one.
        """
        parts = tuple(_lay_out(probe, task, _most_rows(len(probe), num_classes), batch_size, seed))
        everything = torch.cat([part.targets for part in parts])
        classes = int(everything.max()) + 1 if num_classes is None else num_classes  # labels start at 0 in any case
        task.check_targets(everything, classes)
        targets, samples = (torch.cat([_kept(part, name) for part in parts]) for name in ("targets", "samples"))
        units = None if parts[0].units is None else torch.cat([_kept(part, "units") for part in parts])
        used = torch.cat([part.samples if part.valid is None else part.samples[part.valid] for part in parts])
        alone = torch.equal(samples, torch.arange(len(probe)))
        return cls(
            probe,
            task,
            num_classes,
            seed,
            parts,
            targets,
            None if alone else samples,
            units,
            torch.bincount(used, minlength=len(probe)),
            assign_folds(len(probe), NUM_FOLDS, seed),
        )

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.probe)

    @property
    def row_folds(self) -> Tensor:
        """Fold of each row whose logits are kept, shape (R,); the rows of one sample are in one."""
        return self.folds if self.samples is None else self.folds[self.samples]

    def term(self, values: Tensor) -> Term:
        """The mean of a value for each kept row, shape (R,), with its error over samples; a sum of means over units."""
        if self.samples is None:
            return self.sample_term(values)
        return self.sample_term(gains_by_sample(values, self.samples, len(self), self.units))

    def share(self, hits: Tensor) -> Term:
        """The share of all rows that are hits, of their number in each sample, shape (N,)."""
        share = float(hits.sum() / self.counts.sum())  # to the last digit, whatever the order of summing is
        return replace(self.sample_term(values_by_sample(hits, self.counts)), value=share)

    def sample_term(self, values: Tensor) -> Term:
        """The mean of a value for each sample, shape (N,), or for the samples of one fold."""
        return Term.of(values, self.seed, num_groups(len(self)))

    def labels(self, argument: str) -> Tensor:
        """The class of each sample, shape (N,), for estimators that know no other target.

        Args:
            argument: What asks for it, for the message.

        Raises:
            ArgumentError: If a sample has another kind of target, or several, or none.
        """
        if self.samples is not None or self.targets.dim() != 1 or self.targets.is_floating_point():
            raise ArgumentError(
                f"{argument} needs one class index a sample, and the task {self.task.name!r} has other targets here. "
                "Leave it out: the default estimators take them."
            )
        return self.targets


def draw_rows(samples: Tensor, most: int, seed: int) -> Tensor:
    """At most so many rows of each sample, drawn by seed: the same whatever the other samples are.

    Args:
        samples: Sample of each row, shape (P,), in ascending order.
        most: The largest number of rows of a sample.
        seed: Of the draw.

    Returns:
        Indices, shape (R,), ascending.
    """
    numbers, counts = torch.unique_consecutive(samples, return_counts=True)
    if not len(counts) or int(counts.max()) <= most:
        return torch.arange(len(samples))
    drawn, start = [], 0
    generator = torch.Generator()
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        generator.manual_seed((_MIXER * seed + number) % 2**32)  # of more bits it takes the lower 32
        drawn.append(start + torch.randperm(count, generator=generator)[:most].sort().values)
        start += count
    return torch.cat(drawn)


def _most_rows(num_samples: int, num_classes: int | None) -> int:
    return max(1, min(MOST_ROWS, _MOST_NUMBERS // max(1, num_samples * (num_classes or 1))))


def _lay_out(probe: Probe, task: Task, most: int, batch_size: int, seed: int) -> Iterator[Part]:
    first = 0
    for batch in split(probe.batches, batch_size):
        targets, samples = task.flatten_targets(batch.targets), task.samples(batch.targets)
        samples = first + (torch.arange(len(batch)) if samples is None else samples)
        with_target = task.labelled(batch.targets).places
        valid = None
        if len(with_target) < len(targets):
            valid = torch.zeros(len(targets), dtype=torch.bool)
            valid[with_target] = True
        kept = with_target[draw_rows(samples[with_target], most, seed)]
        yield Part(
            batch, targets, valid, samples, task.units(batch.targets), None if len(kept) == len(targets) else kept
        )
        first += len(batch)


def _kept(part: Part, name: str) -> Tensor:
    """Something of the rows whose logits are kept."""
    values: Tensor = getattr(part, name)
    return values if part.kept is None else values[part.kept]
