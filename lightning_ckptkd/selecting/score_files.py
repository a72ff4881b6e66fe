"""Scores on disk: one that was interrupted goes on where it stopped, one that is repeated finds what it needs.

While snapshots are scored, each rank writes a small file for each score. When the choice is made, rank 0 gathers them
in one file, ``scores.json``, in which later selections look first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.selection import read_candidate
from lightning_ckptkd.snapshots.store import package_versions

SCORES_NAME = "scores.json"
_FORMAT, _VERSION = "lightning_ckptkd.scores", 2
_NAME = re.compile(r"score-[0-9a-f]{16}-[0-9a-f]{16}\.json")
_MOST = 2000  # scores that are kept: 2 MB
_AFTER_SCORING = (  # settings that no score depends on
    "num_teachers",
    "ensemble",
    "input_weight",
    "label_weight",
    "normalisation",
    "label_floor",
)


def scoring_key(settings: SelectionSettings, module: nn.Module, probe: Probe, *others: Any) -> str:
    """The key of scores by these settings, network, probe samples and whatever else (in JSON's types) they need."""
    scoring = {key: value for key, value in asdict(settings).items() if key not in _AFTER_SCORING}
    key = json.dumps([scoring, probe.digest(), repr(module), package_versions(), *others], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()


class ScoreFiles:
    """The scores of a harvest, in its folder.

    A score is found again only for the same weights and key.

    Args:
        store: The harvest.
        key: Stands for all that a score depends on besides the weights, as :func:`scoring_key` gives it.
    """

    def __init__(self, store: SnapshotStore, key: str) -> None:
        self._store, self._key = store, key
        self._gathered = dict(_read(store, SCORES_NAME))

    def read(self, snapshot: Snapshot) -> Score | None:
        """The score of a snapshot, or None where there is none to trust."""
        place = self._key, snapshot.sha256
        score = dict(_read(self._store, self._name(snapshot))).get(place, self._gathered.get(place))
        return score if score is not None and score.candidate.file == snapshot.file else None

    def write(self, snapshot: Snapshot, score: Score) -> None:
        """Keep a score; where it can't be written, the selection goes on without."""
        _write(self._store, self._name(snapshot), {(self._key, snapshot.sha256): score})

    def gather(self, snapshots: Sequence[Snapshot], scores: Sequence[Score]) -> None:
        """Gather this selection's scores with those of earlier ones, and remove its small files."""
        known = {snapshot.sha256 for snapshot in self._store.snapshots}
        new = {(self._key, snapshot.sha256): score for snapshot, score in zip(snapshots, scores, strict=True)}
        old = {place: score for place, score in self._gathered.items() if place[1] in known and place not in new}
        _write(self._store, SCORES_NAME, dict([*old.items(), *new.items()][-_MOST:]))
        with contextlib.suppress(SnapshotError):
            self._store.folder.clean("", self._is_own)  # temporary files are not ours

    def _is_own(self, name: str) -> bool:
        """Whether a file is one of this selection's; those of others may be needed when they go on."""
        return _NAME.fullmatch(name) is not None and name.endswith(f"-{self._key[:16]}.json")

    def _name(self, snapshot: Snapshot) -> str:
        return f"score-{snapshot.sha256[:16]}-{self._key[:16]}.json"


def _write(store: SnapshotStore, name: str, scores: dict[tuple[str, str], Score]) -> None:
    entries = [{"key": key, **_to_json(score)} for (key, _), score in scores.items()]
    document = {"format": _FORMAT, "version": _VERSION, "scores": entries}
    with contextlib.suppress(SnapshotError):
        store.folder.write_json(name, document, store.manifest.tag)


def _to_json(score: Score) -> dict[str, Any]:
    return {"snapshot": asdict(score.candidate), **{name: getattr(score, name) for name in _REPLICATES}}


_REPLICATES = ("input_replicates", "label_replicates", "score_replicates")


def _read(store: SnapshotStore, name: str) -> Iterator[tuple[tuple[str, str], Score]]:
    """Scores by key and hash, from a file that may be missing, and is untrusted."""
    try:
        if not store.folder.exists(name):
            return
        where = store.folder / name
        fields = Fields(store.folder.read_json(name), where)
        fields.header(_FORMAT, _VERSION)
        for item in fields.objects("scores"):
            candidate = read_candidate(Fields(item.mapping("snapshot"), where))
            score = Score(candidate, *(item.number_list(replicates) for replicates in _REPLICATES))
            yield (item.text("key"), candidate.sha256), score
    except SnapshotError:
        return
