"""The manifest of a harvest: which snapshots exist, and what is known of each."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.folders import Folder, is_plain_name, run_tag

MANIFEST_NAME = "manifest.json"
_FORMAT, _VERSION = "lightning_ckptkd.harvest", 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """One committed snapshot.

    Attributes:
        epoch: Lightning's ``current_epoch`` (counted from 0) in which the weights were taken.
        global_step: Lightning's ``global_step``: optimiser steps taken so far.
        file: Name of the safetensors file in the harvest's folder.
        sha256: SHA-256 of that file, in hexadecimal.
        size: Size of that file in bytes.
        learning_rate: Rate of the first parameter group during the last batch; None where it is unknown.
        metrics: What was logged in that epoch; None stands for a value that is not finite.
    """

    epoch: int
    global_step: int
    file: str
    sha256: str
    size: int
    learning_rate: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for people: the epoch and the step."""
        return f"epoch {self.epoch} (step {self.global_step})"


@dataclass(frozen=True)
class Manifest:
    """What a harvest's folder holds; the file ``manifest.json``.

    Attributes:
        run_id: The training run that the snapshots come from; untrusted, as all that is read.
        created: Time of the first commit, UTC, ISO 8601.
        source: What was harvested: class path and hyper-parameters where they are known, the submodule.
        packages: Versions of the packages that wrote the harvest.
        snapshots: The snapshots in the order of training.
    """

    run_id: str
    created: str
    source: dict[str, Any]
    packages: dict[str, Any]
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def tag(self) -> str:
        """What marks the files of this run."""
        return run_tag(self.run_id)

    @property
    def files(self) -> set[str]:
        """Names of the snapshots' files."""
        return {snapshot.file for snapshot in self.snapshots}

    def write(self, folder: Folder) -> None:
        """Write the manifest into ``folder``: whole or not at all."""
        folder.write_json(MANIFEST_NAME, {"format": _FORMAT, "version": _VERSION, **asdict(self)}, self.tag)

    @classmethod
    def read(cls, folder: Folder) -> Manifest:
        """Read the manifest of ``folder``, trusting nothing in it.

        Raises:
            SnapshotError: If it is missing, no JSON, of another version, or if a field is wrong.
        """
        where = str(folder / MANIFEST_NAME)
        fields = Fields(folder.read_json(MANIFEST_NAME), where)
        fields.header(_FORMAT, _VERSION)
        snapshots = tuple(_read_snapshot(item, where) for item in fields.objects("snapshots"))
        if len({snapshot.file for snapshot in snapshots}) < len(snapshots):
            raise SnapshotError(f"{where} names the same file twice; restore it from a copy.")
        steps = [snapshot.global_step for snapshot in snapshots]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise SnapshotError(f"{where}: the snapshots are not in the order of training; restore it from a copy.")
        return cls(
            run_id=fields.text("run_id"),
            created=fields.text("created"),
            source=fields.plain("source"),
            packages=fields.plain("packages"),
            snapshots=snapshots,
        )


def _read_snapshot(fields: Fields, where: str) -> Snapshot:
    snapshot = Snapshot(
        epoch=fields.natural("epoch"),
        global_step=fields.natural("global_step"),
        file=fields.text("file"),
        sha256=fields.text("sha256"),
        size=fields.natural("size"),
        learning_rate=fields.optional_number("learning_rate"),
        metrics=fields.numbers("metrics"),
    )
    if not is_plain_name(snapshot.file) or not snapshot.file.endswith(".safetensors"):
        raise SnapshotError(
            f"{where} names the file {snapshot.file!r}; only plain names of .safetensors files in the same folder are "
            "read, never '..', absolute paths or links. Restore the manifest from a copy."
        )
    if not _SHA256.fullmatch(snapshot.sha256):
        raise SnapshotError(f"{where}: the sha256 of {snapshot.file!r} is not 64 hexadecimal digits.")
    return snapshot
