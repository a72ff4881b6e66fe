"""Training data: what a proxy's students are trained on, and a soup's BatchNorm sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.probe import Transfer
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.loaders import batches_of, is_indexed, load_samples, sample_indices
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.trainer.seeding import seed_all


@dataclass(frozen=True)
class TrainingData:
    """What the proxy's students are trained on, and what a soup's BatchNorm statistics are of.

    Attributes:
        loader: The run's training data.
        reader: Unpacks its batches.
        transfer: What is done to a batch before.
        asked_by: The option that asks for it, for messages.
    """

    loader: Iterable[Any]
    reader: BatchReader
    transfer: Transfer | None = None
    asked_by: str = "student_proxy"

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The same batches at each call with the same seed, also where transforms are random.

        Raises:
            ArgumentError: If there are no samples.
        """
        seed_all(seed)
        for raw in itertools.islice(self._all_batches(steps * batch_size, batch_size, seed), steps):
            yield self.reader(raw if self.transfer is None else self.transfer(raw))

    def samples(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches of so many samples, or of all where there are fewer; where they can't be drawn, a few more.

        Raises:
            ArgumentError: If there are no samples.
        """
        seed_all(seed)
        raws: Iterable[Any] = batches_of(self.loader)
        if is_indexed(self.loader):
            indices = sample_indices(self.loader)
            drawn = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:count]]
            raws = load_samples(self.loader, drawn.tolist(), batch_size)
        found = 0
        for raw in self._at_least_one(raws):
            batch = self.reader(raw if self.transfer is None else self.transfer(raw))
            found += len(batch)
            yield batch
            if found >= count:
                return

    def _all_batches(self, size: int, batch_size: int, seed: int) -> Iterator[Any]:
        if not is_indexed(self.loader):
            while True:
                yield from self._at_least_one(batches_of(self.loader))
        indices = sample_indices(self.loader)
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-size // max(1, len(indices)))
        shuffled = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(rounds)]
        yield from self._at_least_one(load_samples(self.loader, torch.cat(shuffled)[:size].tolist(), batch_size))

    def _at_least_one(self, batches: Iterable[Any]) -> Iterator[Any]:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ArgumentError(f"{self.asked_by}: the training data have no batch. Give a train= dataloader that has.")
