"""Making a soup of ranked snapshots: which join, what it tells of held-out labels, whether it is worth taking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.information.uncertainty import jackknife_error
from lightning_ckptkd.rank_zero import rank_zero_warn
from lightning_ckptkd.selecting.batch_norm import batch_norms, estimate_statistics
from lightning_ckptkd.selecting.channels_last import channels_last
from lightning_ckptkd.selecting.items import Item
from lightning_ckptkd.selecting.layers import forward, placed
from lightning_ckptkd.selecting.probe import digest
from lightning_ckptkd.selecting.score import Term
from lightning_ckptkd.selecting.snapshot_scorer import HeldOutTerm, SnapshotScorer
from lightning_ckptkd.selecting.soup import WINDOW, Soup
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.snapshots import Snapshot
from lightning_ckptkd.snapshots.averaging import WeightMean
from lightning_ckptkd.snapshots.weights import module_weights
from lightning_ckptkd.tasks.batch import Batch, split

_FEW = 16  # samples on which two ways of running are compared


@dataclass(frozen=True)
class Member:
    """A snapshot that may be in a soup.

    Attributes:
        item: A way to its weights.
        term: What it tells of held-out labels alone.
        place: Its place in training among the usable ones, from 0.
    """

    item: Item
    term: Term
    place: int

    @property
    def file(self) -> str:
        """Its name."""
        return self.item.snapshot.file


@dataclass(frozen=True)
class Made:
    """A soup that was made, or why none was.

    Attributes:
        record: What the choice says of it, in JSON's types; ``file`` and ``sha256`` are missing where one was made.
        members: Its snapshots, the best first; empty where none was made.
        weights: Its weights; likewise.
        recipe: What decides these.
        term: What it tells of held-out labels.
    """

    record: dict[str, Any]
    members: tuple[Snapshot, ...] = ()
    weights: Mapping[str, Tensor] | None = None
    recipe: dict[str, Any] | None = None
    term: Term | None = None


@dataclass(frozen=True)
class _Taste:
    """A mean of weights, and what it tells."""

    weights: dict[str, Tensor]
    found: HeldOutTerm


class SoupBuilder:
    """Makes a soup; runs on one rank, with the module lent out.

    Args:
        soup: How.
        scorer: Runs the module.
        module: What the snapshots fit.
        members: Those that can be used, the best first.
        data: For BatchNorm statistics; None takes the probe samples.
        batch_size: Samples of a forward pass.
        seed: Of the draw of training samples.
    """

    def __init__(
        self,
        soup: Soup,
        scorer: SnapshotScorer,
        module: nn.Module,
        members: Sequence[Member],
        data: TrainingData | None,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._soup, self._scorer, self._module = soup, scorer, module
        self._members, self._data = self._candidates(members), data
        self._batch_size, self._seed = batch_size, seed
        self._batches: list[Batch] | None = None
        self._statistics: dict[str, Any] | None = None
        self._lent, self._tried = ExitStack(), False

    def make(self, progress: Callable[[Sequence[Member]], Any] = lambda members: members) -> Made:
        """Read the snapshots, each once, and make the soup.

        Args:
            progress: Is given those that are read, and gives them back one by one.

        Raises:
            SnapshotError: If a file is damaged, or weights can't be averaged.
            ArgumentError: If the training data have no batch.
        """
        with self._lent:
            return self._make(progress)

    def _make(self, progress: Callable[[Sequence[Member]], Any]) -> Made:
        first = self._members[0]
        if len(self._members) == 1:
            return self._without("a soup needs two snapshots or more, and one can be used")
        mean = WeightMean(first.item.load(), first.file)
        if self._soup.kind == "greedy":
            members, taste, steps = self._grow(mean, progress)
        else:
            members, taste, steps = self._average(mean, progress)
        if taste is None or len(members) == 1:
            errors = "one standard error" if self._soup.margin == 1 else f"{self._soup.margin:g} standard errors"
            return self._without(f"no snapshot adds more to the best one than {errors}", steps=steps)
        if taste.found.term is None:
            return self._without(f"the mean of {len(members)} snapshots gives nothing that can be scored", steps=steps)
        best = max(members, key=lambda member: member.term.value)
        gain, error = _gain(taste.found.term, best.term)
        numbers = {
            "information": taste.found.term.value,
            "error": taste.found.term.error,
            "temperature": taste.found.temperature,
            "best": {"file": best.file, "information": best.term.value, "error": best.term.error},
            "gain": gain,
            "gain_error": error,
            "members": [_describe(member) for member in members],
            "kept": list(mean.kept),
            "batch_norm": self._statistics,
            "steps": steps,
        }
        if gain <= 0:
            why = (
                f"averaging the weights of {len(members)} snapshots loses here: their mean tells "
                f"{taste.found.term.value:.3f} of held-out labels and the best of them {best.term.value:.3f}"
            )
            return self._without(why, **numbers)
        recipe = {
            **self._soup.describe(),
            "weights": [1 / len(members)] * len(members),
            "batch_norm": self._statistics,
            "kept": list(mean.kept),
        }
        record = {"taken": True, "kind": self._soup.kind, "weights": recipe["weights"], **numbers}
        return Made(record, tuple(member.item.snapshot for member in members), taste.weights, recipe, taste.found.term)

    def _candidates(self, members: Sequence[Member]) -> list[Member]:
        soup, first = self._soup, members[0]
        window = WINDOW if soup.window is None and soup.kind == "window" else soup.window
        if window is not None:
            near = sorted((abs(member.place - first.place), -member.place) for member in members)[:window]
            places = {-place for _, place in near}
            members = [member for member in members if member.place in places]
        return list(members if soup.kind == "window" else members[: soup.candidates])

    def _grow(
        self, mean: WeightMean, progress: Callable[[Sequence[Member]], Any]
    ) -> tuple[list[Member], _Taste | None, list[dict[str, Any]]]:
        members, taken, current = self._members[:1], None, self._members[0].term
        steps: list[dict[str, Any]] = []
        for member in progress(self._members[1:]):
            weights = member.item.load()
            taste = self._taste(mean.mean(weights, member.file), mean.differing(weights))
            term, joins, step = taste.found.term, False, {}
            if term is not None:
                gain, error = _gain(term, current)
                joins = gain > self._soup.margin * error and gain > 0
                step = {"information": term.value, "gain": gain, "gain_error": error}
            steps.append({**_describe(member), "joined": joins, **step})
            if joins and term is not None:
                mean.add(weights, member.file)
                members, taken, current = [*members, member], taste, term
        return members, taken, steps

    def _average(
        self, mean: WeightMean, progress: Callable[[Sequence[Member]], Any]
    ) -> tuple[list[Member], _Taste | None, list[dict[str, Any]]]:
        for member in progress(self._members[1:]):
            mean.add(member.item.load(), member.file)
        return self._members, self._taste(mean.mean(), mean.differing()), []

    def _taste(self, weights: dict[str, Tensor], changed: set[str]) -> _Taste:
        layers = batch_norms(self._module, changed)
        if not layers:
            return _Taste(weights, self._scorer.held_out(weights, "a soup"))
        batches = self._statistics_batches()

        def prepare(module: nn.Module) -> None:
            self._lay_out(module, batches[0])
            estimate_statistics(module, layers.values(), batches)

        found = self._scorer.held_out(weights, "a soup", prepare)
        buffers = [buffer for layer in layers.values() for buffer in (layer.running_mean, layer.running_var)]
        places = {buffer.data_ptr() for buffer in buffers if buffer is not None}
        estimated = {
            name: value.to("cpu", weights[name].dtype, copy=True)
            for name, value in module_weights(self._module).items()
            if value.data_ptr() in places
        }
        return _Taste({**weights, **estimated}, found)

    def _lay_out(self, module: nn.Module, batch: Batch) -> None:
        """Let the module run channels last until the soup is made, where it can; tried once."""
        if not self._tried:
            self._tried, few = True, batch[:_FEW] if batch.is_plain else batch
            self._lent.enter_context(channels_last(module, lambda: forward(module, placed(module, few))))

    def _statistics_batches(self) -> list[Batch]:
        if self._batches is None:
            count, rows = self._soup.batch_norm_samples, self._scorer.rows
            size = max(2, self._batch_size)  # of vectors, one sample has no variance
            if self._data is None:
                rank_zero_warn(
                    "ensemble='soup': there are no training data, so BatchNorm statistics of the soup are those of the "
                    "probe samples, on which it is judged as well. Give a train= dataloader, or a datamodule that has "
                    "one."
                )
                self._batches = list(split(rows.probe.batches, size))
            else:
                drawn = self._data.samples(count, min(size, count), self._seed)
                self._batches = [batch.detached() for batch in drawn]
            self._statistics = {
                "samples": sum(map(len, self._batches)),
                "of": "probe" if self._data is None else "training",
                "digest": digest(self._batches)[:16],
            }
        return self._batches

    def _without(self, why: str, **known: Any) -> Made:
        return Made({"taken": False, "kind": self._soup.kind, "why": why, **known})


def _gain(one: Term, other: Term) -> tuple[float, float]:
    """What one tells more than the other, and its standard error over the same samples."""
    pairs = zip(one.replicates, other.replicates, strict=True)
    differences = torch.tensor([mine - theirs for mine, theirs in pairs], dtype=torch.float64)
    return one.value - other.value, float(jackknife_error(differences))


def _describe(member: Member) -> dict[str, Any]:
    snapshot = member.item.snapshot
    return {"file": snapshot.file, "epoch": snapshot.epoch, "global_step": snapshot.global_step}
