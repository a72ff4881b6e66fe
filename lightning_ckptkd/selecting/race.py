"""A race of snapshots on parts of the probe set: those that can't be among the best are not run on all of it.

After an eighth, a quarter and half of the samples, drawn at random, those leave of which
:mod:`lightning_ckptkd.information.racing` says so; the others go on, and what they gave on a part is used again. So a
score of one that stays is that of the full table. The last snapshot never leaves: others are held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_ckptkd.information.racing import parts_of, quantile, who_leaves
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.features import Features, constant, joined
from lightning_ckptkd.selecting.items import Item, Memo
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import Racer, ScoringRule
from lightning_ckptkd.selecting.score import Score, num_groups
from lightning_ckptkd.selecting.score_files import derived_key
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer, excluded_by
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks

HELD_WEIGHTS, HELD_FEATURES = 2**28, 2**30  # bytes on each rank; what is beyond is read or computed again


@dataclass(frozen=True)
class RacePart:
    """The first samples of a race.

    Attributes:
        rows: These, laid out.
        racer: The rule, prepared for them.
        key: Of their scores.
    """

    rows: ProbeRows
    racer: Racer
    key: str


@dataclass(frozen=True)
class Finish:
    """How a race ended.

    Attributes:
        scores: Of every snapshot, in the order of training; of one that left, on the part after which it did.
        parts: By number of samples, the scores of all that were in the race on these, by file.
        kept: By key, what later selections may use.
    """

    scores: list[Score]
    parts: Mapping[int, Mapping[str, Score]]
    kept: Mapping[str, Sequence[Score]]


@dataclass
class _Held:
    """What is kept of snapshots between parts, as long as it is few bytes."""

    most: int
    things: dict[str, tuple[int, object]] = field(default_factory=dict)

    def put(self, file: str, thing: object, tensors: Iterable[Tensor | None]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
        self.drop(file)
        if sum(known for known, _ in self.things.values()) + size <= self.most:
            self.things[file] = size, thing

    def get(self, file: str) -> object | None:
        return self.things[file][1] if file in self.things else None

    def drop(self, file: str) -> None:
        self.things.pop(file, None)


class Race:
    """A race by one rule; each rank makes the same calls.

    Args:
        scorer: Runs the snapshots.
        settings: How they are scored.
        rule: Theirs.
        module: What they are loaded into.
        device: Where it runs.
        memo: Scores of before.
        key: Of scores of the full table.
        sizes: Numbers of samples after which snapshots may leave.
    """

    def __init__(
        self,
        scorer: SnapshotScorer,
        settings: SelectionSettings,
        rule: ScoringRule,
        module: nn.Module,
        device: torch.device | str,
        memo: Memo,
        key: str,
        sizes: Sequence[int],
    ) -> None:
        self._scorer, self._settings, self._rule, self._memo = scorer, settings, rule, memo
        self._module, self._device = module, device
        self._key, self._own_key = key, derived_key(key, "race")
        generator = torch.Generator().manual_seed(settings.seed)
        self._order = torch.randperm(len(scorer.rows), generator=generator)
        self._parts = [self._part(size) for size in sizes]
        self._weights, self._features = _Held(HELD_WEIGHTS), _Held(HELD_FEATURES)
        self._verified: set[str] = set()

    @classmethod
    def of(
        cls,
        scorer: SnapshotScorer,
        settings: SelectionSettings,
        rule: ScoringRule,
        module: nn.Module,
        device: torch.device | str,
        memo: Memo,
        key: str,
    ) -> Race | str:
        """A race, or why there is none."""
        rows = scorer.rows
        if settings.ensemble_or_default != "top":
            return "another ensemble than 'top' does not take the best scores alone"
        if len(rows.probe.batches) > 1 or not rows.probe.batches[0].is_plain or rows.samples is not None:
            return "the samples can't be taken one by one, or have several targets or none"
        sizes = parts_of(len(rows))
        if not sizes:
            return f"{len(rows)} probe samples are too few to tell snapshots apart by a part of them"
        race = cls(scorer, settings, rule, module, device, memo, key, sizes)
        return race if race._parts[0].racer is not None else "the rule's scores on a part do not foretell those on all"

    def run(self, items: Sequence[Item], count: int, *, progress: bool = False) -> Finish:
        """Score the snapshots.

        Args:
            items: All.
            count: How many will be chosen.
            progress: Whether rank 0 shows a progress bar.

        Raises:
            SnapshotError: If a file is missing, damaged or hostile.
        """
        running, done = list(range(len(items))), dict[int, Score]()
        parts: dict[int, dict[str, Score]] = {}
        kept: dict[str, Sequence[Score]] = {}
        ties = self._rule.ties != "score"
        for part in self._parts:
            size = len(part.rows)
            found = self._on_ranks(items, running, partial(self._score_part, part), size, progress)
            done |= {place: score for place, score in found.items() if score.candidate.excluded is not None}
            running = [place for place in running if place not in done]
            parts[size] = {items[place].snapshot.file: found[place] for place in running}
            kept[part.key] = [found[place] for place in running]
            known = [place for place in running if found[place].terms]
            if len(known) <= count:
                continue
            sure = quantile(len(items), len(self._parts), num_groups(size))
            views = part.racer.views([found[place] for place in known], sure)
            leaves = who_leaves(views, sure, size / len(self._order), count, first_by_ties=ties).tolist()
            for place, goes in zip(known, leaves, strict=True):
                if goes and place != running[-1]:
                    done[place] = replace(found[place], candidate=part.racer.known(found[place]))
                    self._forget(items[place])
            running = [place for place in running if place not in done]
        if not done:
            rank_zero_info(
                f"MISelector: on {size} of {len(self._order)} probe samples no snapshot was surely behind others, so "
                "that all are scored on all."
            )
        total = len(self._order)
        full = self._on_ranks(items, running, self._score_all, total, progress)
        if any(score.candidate.excluded is not None for score in full.values()):  # it had its place among the best
            again = [place for place, score in done.items() if score.candidate.excluded is None]
            full |= self._on_ranks(items, again, self._score_all, total, progress)
        done |= full
        kept[self._own_key] = list(full.values())
        return Finish([done[place] for place in range(len(items))], parts, kept)

    def _on_ranks(
        self, items: Sequence[Item], running: Sequence[int], score: Callable[[Item], Score], size: int, progress: bool
    ) -> dict[int, Score]:
        """Scores by place. A snapshot stays on its rank, which holds what it gave so far."""
        own = [place for place in running if place % num_ranks() == current_rank()]
        words = f"Selecting teachers, {size} of {len(self._order)} samples"

        def work() -> dict[int, Score]:
            with (
                borrowed(self._module, self._device),
                tqdm(own, desc=words, unit="snapshot", disable=not progress or current_rank() > 0) as bar,
            ):
                return {place: score(items[place]) for place in bar}

        return {place: found for part in on_all_ranks(work) for place, found in part.items()}

    def _part(self, size: int) -> RacePart:
        rows = self._rows(self._order[:size])
        racer = self._rule.race(rows, self._device)
        return RacePart(rows, racer, derived_key(self._key, f"race {size}"))  # type: ignore[arg-type]  # see of()

    def _rows(self, places: Tensor) -> ProbeRows:
        rows = self._scorer.rows
        batch = rows.probe.batches[0]
        probe = Probe((replace(batch, inputs=batch.inputs[places], targets=batch.targets[places]),))
        return ProbeRows.of(probe, rows.task, rows.num_classes, self._settings.batch_size, rows.seed)

    def _score_part(self, part: RacePart, item: Item) -> Score:
        size = len(part.rows)
        score = self._memo.read(part.key, item.snapshot)
        if score is not None and score.candidate.scored_on == size:
            self._verify(item)
            return score
        reason = excluded_by(self._load(item))
        if reason is not None:
            return Score(item.candidate(reason))
        features = self._run(item, size)
        if features.finite and constant(features):  # it may not be on all samples
            return Score(item.candidate())
        score = self._scorer.measure(item.candidate(), features, part.rows, part.racer)
        if score.candidate.excluded is not None:
            return score if not features.finite else Score(item.candidate())
        score = replace(score, candidate=replace(score.candidate, scored_on=size))
        self._memo.write(part.key, item.snapshot, score)
        return score

    def _score_all(self, item: Item) -> Score:
        for key in (self._key, self._own_key):
            score = self._memo.read(key, item.snapshot)
            if score is not None and score.candidate.scored_on is None:
                self._verify(item)
                return score
        reason = excluded_by(self._load(item))
        if reason is not None:
            return Score(item.candidate(reason))
        places = self._order.argsort()
        features = self._run(item, len(self._order)).taken(places)
        score = self._scorer.measure(item.candidate(), features)
        self._memo.write(self._own_key, item.snapshot, score)
        self._forget(item)
        return score

    def _run(self, item: Item, size: int) -> Features:
        """What the first samples give, of which the first of these may be there already."""
        file = item.snapshot.file
        held = self._features.get(file)
        before = held if isinstance(held, Features) else None
        rows = self._rows(self._order[0 if before is None else len(before) : size])
        features = self._scorer.run(self._load(item), file, rows)
        features = features if before is None else joined(before, features)
        self._features.put(file, features, features.tensors())
        return features

    def _load(self, item: Item) -> dict[str, Tensor]:
        held = self._weights.get(item.snapshot.file)
        if isinstance(held, dict):
            return held
        weights = item.load()
        self._verified.add(item.snapshot.file)
        self._weights.put(item.snapshot.file, weights, weights.values())
        return weights

    def _verify(self, item: Item) -> None:
        """A file may be damaged since it was scored, and must not be chosen then."""
        if item.snapshot.file not in self._verified:
            item.verify()
            self._verified.add(item.snapshot.file)

    def _forget(self, item: Item) -> None:
        self._weights.drop(item.snapshot.file)
        self._features.drop(item.snapshot.file)
