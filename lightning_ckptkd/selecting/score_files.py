"""Scores on disk while a selection runs, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict

from torch import nn

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.information.probe import Probe
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.selection import read_candidate
from lightning_ckptkd.snapshots.store import package_versions

_FORMAT, _VERSION = "lightning_ckptkd.score", 1
_NAME = re.compile(r"score-[0-9a-f]{16}-[0-9a-f]{16}\.json")
_AFTER_SCORING = ("num_teachers", "input_weight", "label_weight", "normalisation")  # settings that no score depends on


class ScoreFiles:
    """The scores of one selection, a small file for each snapshot in the harvest's folder.

    A score is found again only for the same weights, samples, settings and network.

    Args:
        store: The harvest.
        settings: How snapshots are scored.
        module: What is scored.
        probe: The samples.
    """

    def __init__(self, store: SnapshotStore, settings: SelectionSettings, module: nn.Module, probe: Probe) -> None:
        self._store = store
        scoring = {key: value for key, value in asdict(settings).items() if key not in _AFTER_SCORING}
        key = json.dumps([scoring, probe.digest(), repr(module), package_versions()], sort_keys=True)
        self._key = hashlib.sha256(key.encode()).hexdigest()

    def read(self, snapshot: Snapshot) -> Candidate | None:
        """The score of a snapshot, or None where there is none to trust."""
        name = self._name(snapshot)
        folder = self._store.folder
        try:
            if not folder.exists(name):
                return None
            fields = Fields(folder.read_json(name), folder / name)
            fields.header(_FORMAT, _VERSION)
            candidate = read_candidate(Fields(fields.mapping("snapshot"), folder / name))
            same = (fields.text("key"), candidate.sha256, candidate.file) == (self._key, snapshot.sha256, snapshot.file)
            return candidate if same else None
        except SnapshotError:
            return None

    def write(self, snapshot: Snapshot, candidate: Candidate) -> None:
        """Keep a score; where it can't be written, the selection goes on without."""
        document = {"format": _FORMAT, "version": _VERSION, "key": self._key, "snapshot": asdict(candidate)}
        with contextlib.suppress(SnapshotError):
            self._store.folder.write_json(self._name(snapshot), document, self._store.manifest.tag)

    def _name(self, snapshot: Snapshot) -> str:
        return f"score-{snapshot.sha256[:16]}-{self._key[:16]}.json"


def remove_score_files(store: SnapshotStore) -> None:
    """Remove all scores of a harvest, once the choice itself is on disk."""
    store.folder.clean("", lambda name: _NAME.fullmatch(name) is not None)  # temporary files are not ours
