"""Scores on disk: one that was interrupted goes on where it stopped, one that is repeated finds what it needs.

While snapshots are scored, each rank writes a small file for each score. When the choice is made, rank 0 gathers them
in one file, ``scores.json``, in which later selections look first. Each score is sealed: one that was edited since, or
can't be read, is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.rank_zero import rank_zero_warn
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rules import ScoringRule
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.seal import is_sealed, sealed
from lightning_ckptkd.snapshots.selection import read_candidate
from lightning_ckptkd.snapshots.store import package_versions

SCORES_NAME = "scores.json"
_FORMAT, _VERSION = "lightning_ckptkd.scores", 4
_NAME = re.compile(r"score-[0-9a-f]{16}-[0-9a-f]{16}\.json")
_MOST = 2000  # scores that are kept: 2 MB


def scoring_key(settings: SelectionSettings, rule: ScoringRule, module: nn.Module, probe: Probe, *others: Any) -> str:
    """The key of scores by this rule, network, probe samples and whatever else (in JSON's types) they need."""
    measured = [rule.key(), settings.reading()]
    key = json.dumps([measured, probe.digest(), repr(module), package_versions(), *others], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()


def derived_key(key: str, what: str) -> str:
    """The key of scores that depend on something else besides."""
    return hashlib.sha256(f"{key} {what}".encode()).hexdigest()


class ScoreFiles:
    """The scores of a harvest, in its folder.

    A score is found again only for the same weights and key. A key stands for all that a score depends on besides the
    weights, as :func:`scoring_key` gives it.

    Args:
        store: The harvest.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._gathered = _read(store, SCORES_NAME)

    def read(self, key: str, snapshot: Snapshot) -> Score | None:
        """The score of a snapshot, or None where there is none to trust."""
        place = key, snapshot.sha256
        score = _read(self._store, _name(key, snapshot)).get(place) or self._gathered.get(place)
        return score if score is not None and _is_of(score, snapshot) else None

    def write(self, key: str, snapshot: Snapshot, score: Score) -> None:
        """Keep a score; where it can't be written, the selection goes on without."""
        _write(self._store, _name(key, snapshot), {(key, snapshot.sha256): score})

    def gather(self, key: str, scores: Sequence[Score]) -> None:
        """Gather scores with those of earlier selections, and remove the small files of this key."""
        known = {snapshot.sha256 for snapshot in self._store.snapshots}
        new = {(key, score.candidate.sha256): score for score in scores}
        old = {place: score for place, score in self._gathered.items() if place[1] in known and place not in new}
        self._gathered = dict([*old.items(), *new.items()][-_MOST:])
        _write(self._store, SCORES_NAME, self._gathered)
        with contextlib.suppress(SnapshotError):
            # temporary files are not ours, and those of other selections may be needed when they go on
            self._store.folder.clean("", lambda name: _is_own(key, name))


def _is_of(score: Score, snapshot: Snapshot) -> bool:
    found = score.candidate
    return (found.file, found.epoch, found.global_step) == (snapshot.file, snapshot.epoch, snapshot.global_step)


def _is_own(key: str, name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name.endswith(f"-{key[:16]}.json")


def _name(key: str, snapshot: Snapshot) -> str:
    return f"score-{snapshot.sha256[:16]}-{key[:16]}.json"


def _write(store: SnapshotStore, name: str, scores: Mapping[tuple[str, str], Score]) -> None:
    entries = [sealed({"key": key, **_to_json(score)}) for (key, _), score in scores.items()]
    document = {"format": _FORMAT, "version": _VERSION, "scores": entries}
    with contextlib.suppress(SnapshotError):
        store.folder.write_json(name, document, store.manifest.tag)


def _to_json(score: Score) -> dict[str, Any]:
    terms = [{"name": name, **asdict(term)} for name, term in score.terms.items()]
    return {"snapshot": asdict(score.candidate), "terms": terms}


def _read(store: SnapshotStore, name: str) -> dict[tuple[str, str], Score]:
    """Scores by key and hash, from a file that may be missing, and is untrusted; what is left out is told in a line."""
    where = store.folder / name
    found: dict[tuple[str, str], Score] = {}
    try:
        if not store.folder.exists(name):
            return found
        document = store.folder.read_json(name)
        fields = Fields(document, where)
        fields.header(_FORMAT, _VERSION)
        items = fields.items("scores")
    except SnapshotError as error:
        rank_zero_warn(f"{where} is not used, and what it held is scored anew where it is needed: {error}")
        return found
    for item in items:
        with contextlib.suppress(SnapshotError):
            if is_sealed(item):
                key, score = _from_json(Fields(item, where))
                found[key, score.candidate.sha256] = score
    if len(found) < len(items):
        rank_zero_warn(
            f"{where}: {len(items) - len(found)} of {len(items)} scores were changed since they were written, and are "
            "made anew where they are needed."
        )
    return found


def _from_json(fields: Fields) -> tuple[str, Score]:
    terms = {
        term.text("name"): Term(term.number("value"), term.number_list("replicates"))
        for term in fields.objects("terms")
    }
    if len({len(term.replicates) for term in terms.values()}) > 1:
        raise SnapshotError("the terms of one score have the same groups of samples")
    candidate = read_candidate(Fields(fields.mapping("snapshot"), "a score"))
    return fields.text("key"), Score(candidate, terms)
