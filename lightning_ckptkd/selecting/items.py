"""The snapshots of a harvest as a list, each with a way to its weights: all that selecting knows of the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.snapshots import Candidate, Snapshot, SnapshotStore, SoupSnapshot


@dataclass(frozen=True)
class Item:
    """One snapshot.

    Attributes:
        snapshot: What the manifest says of it.
        load: Reads its weights, verified; raises SnapshotError.
        verify: Reads its file and checks it, as ``load`` does.
    """

    snapshot: Snapshot
    load: Callable[[], dict[str, Tensor]]
    verify: Callable[[], None]

    def candidate(self, excluded: str | None = None) -> Candidate:
        """For the record, before anything is known of it but why it can't be chosen, if so."""
        snapshot = self.snapshot
        return Candidate(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step, excluded=excluded)


CommitSoup = Callable[[Mapping[str, Tensor], Sequence[Snapshot], Mapping[str, Any]], SoupSnapshot]


class Memo(Protocol):
    """Scores of earlier selections, by a key that stands for all that they depend on."""

    def read(self, key: str, snapshot: Snapshot) -> Score | None:
        """The score of a snapshot; None where there is none."""

    def write(self, key: str, snapshot: Snapshot, score: Score) -> None:
        """Keep a score while others are still being made."""

    def gather(self, key: str, scores: Sequence[Score]) -> None:
        """Keep all scores of a selection."""


@dataclass(frozen=True)
class Harvested:
    """What is selected from.

    Attributes:
        items: The snapshots, in the order of training.
        memo: Scores that are there already.
        folder: Where they are, for messages.
        whole: Whether they are of all that was trained, rather than of a part of it.
        commit_soup: Adds a mean of them to their folder; see :func:`.snapshots.commit_soup`.
    """

    items: Sequence[Item]
    memo: Memo
    folder: str
    whole: bool = True
    commit_soup: CommitSoup | None = None


def read_items(store: SnapshotStore) -> list[Item]:
    """The snapshots of a harvest in the order of training."""
    return [
        Item(snapshot, partial(store.load, snapshot), partial(store.verify, snapshot)) for snapshot in store.snapshots
    ]
