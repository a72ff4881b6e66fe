"""Snapshots that were scored, spread over ranks, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, CkptKDError
from lightning_ckptkd.information.joint import MOST_TEACHERS
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.selecting.batch_norm import batch_norms
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import Choice, choose_by_score, how_many
from lightning_ckptkd.selecting.items import Harvested, Item
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.race import Race
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import DEFAULT_NUMBER, ScoringRule
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.score_files import scoring_key
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.selecting.soup import Soup
from lightning_ckptkd.selecting.soup_builder import Member, SoupBuilder
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.snapshots import Candidate, JointChoice
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks, on_each_rank, on_rank_zero


@dataclass(frozen=True)
class SoupChoice:
    """A choice after a soup was tried.

    Attributes:
        choice: With the soup's file chosen where one was made.
        record: What ``selection.json`` says of it.
    """

    choice: Choice
    record: dict[str, Any]


class ScoredSnapshots:
    """The snapshots of a harvest, each scored by a rule. Each rank makes the same calls.

    Args:
        harvested: The snapshots.
        settings: How to score and choose.
        rule: Theirs.
        module: A module that the snapshots fit; it is handed back as it came.
        probe: The samples.
        device: Where it runs.
        need_logits: Whether the module must give logits, whatever the rule says.
        progress: Whether rank 0 shows a progress bar.

    Attributes:
        rows: The samples as the task lays them out.
        scores: Of every snapshot, in the order of training.
        parts: Of a race, by number of samples, the scores on these by file.

    Raises:
        SnapshotError: If a file is missing, damaged or hostile.
        TeacherError: If a snapshot does not fit the module.
        ArgumentError: If the module or the probe does not suit the settings.
    """

    def __init__(
        self,
        harvested: Harvested,
        settings: SelectionSettings,
        rule: ScoringRule,
        module: nn.Module,
        probe: Probe,
        device: torch.device | str,
        *,
        need_logits: bool = False,
        progress: bool = False,
    ) -> None:
        self._harvested, self._settings, self._rule = harvested, settings, rule
        self._module, self._device = module, device
        self._key = scoring_key(settings, rule, module, probe)

        def prepare() -> SnapshotScorer:
            with borrowed(module, device):
                return SnapshotScorer(
                    settings, rule, module, probe, device, whole=harvested.whole, need_logits=need_logits
                )

        self._scorer = on_each_rank(prepare)
        self.rows: ProbeRows = self._scorer.rows
        race = self._race(proxy=need_logits)
        self.parts: Mapping[int, Mapping[str, Score]] = {}
        self._kept: Mapping[str, Sequence[Score]] | None = None
        if race is None:
            self.scores = spread(harvested.items, self._score_all, progress=progress)
        else:
            finish = race.run(harvested.items, self._most_chosen(), progress=progress)
            self.scores, self.parts, self._kept = finish.scores, finish.parts, finish.kept

    def choose(self, students: Mapping[str, Score] | None = None) -> Choice:
        """Rank the snapshots and choose; see :func:`.choosing.choose_by_score`.

        Raises:
            SelectionError: If fewer snapshots can be chosen than were asked for.
        """
        settings = self._settings
        count = how_many(self.scores, self._rule, settings.num_teachers, self._harvested.folder)
        if isinstance(count, str) and settings.num_teachers is None and not self._can_join():
            count = min(DEFAULT_NUMBER, sum(score.candidate.excluded is None for score in self.scores))
        return choose_by_score(self.scores, settings, count, self._scorer.scorer.rank, self._grow, students)

    def make_soup(self, choice: Choice, soup: Soup, data: TrainingData | None, *, progress: bool = False) -> SoupChoice:
        """Make a soup of ranked snapshots, on rank 0 while the others wait, and commit it where it is worth taking.

        Args:
            choice: The ranks, and what is chosen where no soup is.
            soup: How.
            data: For BatchNorm statistics.
            progress: Whether rank 0 shows a progress bar.

        Raises:
            SnapshotError: If a file is damaged, weights can't be averaged, or the soup can't be written; of a soup that
                nobody asked for, that is only why there is none.
        """
        commit, name = self._harvested.commit_soup, self._rule.soup_term
        assert commit is not None and name is not None, "the settings have checked it"
        settings = self._settings
        items = {item.snapshot.file: item for item in self._harvested.items}
        terms = {score.candidate.file: score.terms[name] for score in self.scores if score.ranks}
        places = {file: place for place, file in enumerate(terms)}
        ranked = sorted((one for one in choice.candidates if one.rank is not None), key=lambda one: one.rank or 0)
        members = [Member(items[one.file], terms[one.file], places[one.file]) for one in ranked]

        def make() -> tuple[dict[str, Any], tuple[str, ...]]:
            if settings.ensemble is None and data is None and batch_norms(self._module):
                why = "BatchNorm statistics of a soup need training data (train=), and there are none"
                return {"taken": False, "kind": soup.kind, "why": why}, choice.chosen
            try:
                return make_and_commit()
            except Exception as error:  # of training data, say: a soup that nobody asked for costs no choice
                if settings.ensemble is not None:
                    raise
                reason = str(error) if isinstance(error, CkptKDError) else f"{type(error).__name__}: {error}"
                return {"taken": False, "kind": soup.kind, "why": reason.rstrip(".")}, choice.chosen

        def make_and_commit() -> tuple[dict[str, Any], tuple[str, ...]]:
            with borrowed(self._module, self._device):
                builder = SoupBuilder(
                    soup,
                    self._scorer,
                    self._module,
                    members,
                    data,
                    batch_size=settings.batch_size,
                    seed=settings.seed,
                )
                made = builder.make(
                    lambda tried: tqdm(tried, desc="Making a soup", unit="snapshot", disable=not progress)
                )
            if made.weights is None:
                return made.record, choice.chosen
            found = commit(made.weights, made.members, made.recipe or {})
            return {**made.record, "file": found.file, "sha256": found.sha256}, (found.file,)

        record, chosen = on_rank_zero(make)
        return SoupChoice(replace(choice, chosen=chosen), record)

    def keep(self) -> None:
        """Keep the scores for later selections; rank 0 alone."""
        kept = {self._key: self.scores} if self._kept is None else self._kept
        for key, scores in kept.items():
            self._harvested.memo.gather(key, scores)

    def _most_chosen(self) -> int:
        """How many are chosen at most."""
        wanted = self._rule.num_teachers if self._settings.num_teachers is None else self._settings.num_teachers
        return MOST_TEACHERS if isinstance(wanted, str) else wanted

    def _race(self, *, proxy: bool) -> Race | None:
        """The race, where there is one."""
        settings, items, memo = self._settings, self._harvested.items, self._harvested.memo
        if settings.race is False or len(items) <= self._most_chosen():
            return None
        if on_rank_zero(lambda: all(memo.read(self._key, item.snapshot) is not None for item in items)):
            return None  # the full table is there
        found: Race | str = "a student_proxy tries snapshots in the order of all scores"
        if not proxy:
            found = on_each_rank(
                lambda: Race.of(self._scorer, settings, self._rule, self._module, self._device, memo, self._key)
            )
        if isinstance(found, Race):
            return found
        if settings.race:
            rank_zero_info(f"race=True: all snapshots are scored on all probe samples, since {found}.")
        return None

    def _score_all(self, items: Iterable[Item]) -> list[Score]:
        with borrowed(self._module, self._device):
            return [self._score(item) for item in items]

    def _score(self, item: Item) -> Score:
        score = self._harvested.memo.read(self._key, item.snapshot)
        if score is not None:
            item.verify()  # it may be damaged since, and must not be chosen then
            return score
        score = self._scorer.score(item)
        self._harvested.memo.write(self._key, item.snapshot, score)
        return score

    def _can_join(self) -> bool:
        """Whether what several snapshots tell together can be had, where only a rule's default asks for it."""
        if self._settings.ensemble_or_default != "top" or not self._rule.joint:
            return False
        try:
            self._rule.check_rows(self.rows, joint=True)
        except ArgumentError:  # the reason is not the user's to mend: nothing was asked for
            return False
        return True

    def _grow(
        self, scores: Sequence[Score], best: Sequence[Candidate], count: int | str | None
    ) -> Sequence[JointChoice]:
        scorer: Any = self._scorer.scorer  # a JointScorer: the settings have checked it
        by_data = isinstance(count, str)
        pool = scorer.pool(best, 1 if by_data else count or 1)
        pool = pool[:MOST_TEACHERS] if by_data else pool
        items = {item.snapshot.file: item for item in self._harvested.items}
        own = range(current_rank(), len(pool), num_ranks())

        def members() -> list[tuple[int, Any]]:
            with borrowed(self._module, self._device):
                return [(index, scorer.member(self._scorer.features(items[pool[index].file]))) for index in own]

        gathered = {index: member for part in on_all_ranks(members) for index, member in part}
        files = [candidate.file for candidate in pool]
        ordered = [gathered[index] for index in range(len(pool))]
        return on_rank_zero(lambda: scorer.grow(scores, files, ordered, count))


def spread(
    items: Sequence[Item], score: Callable[[Iterable[Item]], list[Score]], *, progress: bool = False
) -> list[Score]:
    """Score snapshots, each rank every n-th of them; every rank gets all scores, in the order of the snapshots.

    Args:
        items: All.
        score: Scores this rank's.
        progress: Whether rank 0 shows a progress bar.
    """
    own = items[current_rank() :: num_ranks()]
    bar = tqdm(own, desc="Selecting teachers", unit="snapshot", disable=not progress or current_rank() > 0)
    by_file = {scored.candidate.file: scored for part in on_all_ranks(lambda: score(bar)) for scored in part}
    return [by_file[item.snapshot.file] for item in items]
