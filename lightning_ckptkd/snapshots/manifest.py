"""The manifest of a harvest: which snapshots exist, and what is known of each."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.folders import Folder, is_plain_name, run_tag
from lightning_ckptkd.snapshots.metrics_file import METRICS_SUFFIX, FiledMetrics

MANIFEST_NAME = "manifest.json"
_FORMAT, _VERSION = "lightning_ckptkd.harvest", 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """One committed snapshot.

    Attributes:
        epoch: Lightning's ``current_epoch`` (counted from 0) in which the weights were taken.
        global_step: Lightning's ``global_step``: optimiser steps taken so far. Where Lightning does not see the steps
            (a raw optimiser that manual optimisation steps itself), the training batches since it stood still are
            counted instead, so that no two snapshots of a run have the same number.
        file: Name of the safetensors file in the harvest's folder.
        sha256: SHA-256 of that file, in hexadecimal.
        size: Size of that file in bytes.
        learning_rate: Rate of the first parameter group during the last batch; None where it is unknown.
        metrics: What was logged in that epoch; None stands for a value that is not finite. Where there is much of it,
            it is read from a file of its own when it is first asked for, which raises a SnapshotError if that file is
            damaged.
    """

    epoch: int
    global_step: int
    file: str
    sha256: str
    size: int
    learning_rate: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for people: the epoch and the step."""
        return f"epoch {self.epoch} (step {self.global_step})"


@dataclass(frozen=True)
class SoupMember:
    """A snapshot whose weights are in a soup; it need not be there any more.

    Attributes:
        file: Name of its file.
        sha256: SHA-256 of that.
        epoch: Lightning's ``current_epoch``, from 0.
        global_step: Optimiser steps taken.
    """

    file: str
    sha256: str
    epoch: int
    global_step: int


@dataclass(frozen=True)
class SoupSnapshot(Snapshot):
    """The mean of the weights of several snapshots, which no training passed through.

    Epoch and step are those of the first member.

    Attributes:
        members: The snapshots that it is made of, the best first.
        recipe: How it was made, as plain JSON.
    """

    members: tuple[SoupMember, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    @override
    def label(self) -> str:
        return f"soup of epochs {', '.join(str(epoch) for epoch in sorted(member.epoch for member in self.members))}"


@dataclass(frozen=True)
class Manifest:
    """What a harvest's folder holds; the file ``manifest.json``.

    Attributes:
        run_id: The training run that the snapshots come from; untrusted, as all that is read.
        created: Time of the first commit, UTC, ISO 8601.
        source: What was harvested: class path and hyper-parameters where they are known, the submodule.
        packages: Versions of the packages that wrote the harvest.
        snapshots: The snapshots in the order of training.
        soups: Means of them, which are no part of training: no rule ranks one and no retention drops one.
    """

    run_id: str
    created: str
    source: dict[str, Any]
    packages: dict[str, Any]
    snapshots: tuple[Snapshot, ...] = ()
    soups: tuple[SoupSnapshot, ...] = ()

    @property
    def tag(self) -> str:
        """What marks the files of this run."""
        return run_tag(self.run_id)

    @property
    def files(self) -> set[str]:
        """Names of the snapshots' files, those of their metrics and of soups among them."""
        filed = {found.metrics.file for found in self.snapshots if isinstance(found.metrics, FiledMetrics)}
        return {snapshot.file for snapshot in (*self.snapshots, *self.soups)} | filed

    def write(self, folder: Folder) -> None:
        """Write the manifest into ``folder``: whole or not at all."""
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "run_id": self.run_id,
            "created": self.created,
            "source": self.source,
            "packages": self.packages,
            **({"soups": [_to_json(soup) for soup in self.soups]} if self.soups else {}),
        }
        # One snapshot a line: the encoder that indents is slow, and all are written at each snapshot.
        found = json.dumps([_to_json(snapshot) for snapshot in self.snapshots], allow_nan=False)
        lines = found[1:-1].replace('}, {"epoch": ', '},\n  {"epoch": ')  # no string holds a bare quotation mark
        text = f'{json.dumps(head, indent=1, allow_nan=False)[:-2]},\n "snapshots": [\n  {lines}\n ]\n}}\n'
        folder.write_json_file(MANIFEST_NAME, text.encode(), self.tag)

    @classmethod
    def read(cls, folder: Folder) -> Manifest:
        """Read the manifest of ``folder``, trusting nothing in it.

        Raises:
            SnapshotError: If it is missing, no JSON, of another version, or if a field is wrong.
        """
        where = str(folder / MANIFEST_NAME)
        fields = Fields(folder.read_json(MANIFEST_NAME), where)
        fields.header(_FORMAT, _VERSION)
        snapshots = tuple(_read_snapshot(item, folder) for item in fields.objects("snapshots"))
        manifest = cls(
            run_id=fields.text("run_id"),
            created=fields.text("created"),
            source=fields.plain("source"),
            packages=fields.plain("packages"),
            snapshots=snapshots,
            soups=tuple(_read_soup(item, folder) for item in fields.optional_objects("soups")),
        )
        filed = sum(isinstance(snapshot.metrics, FiledMetrics) for snapshot in snapshots)
        if len(manifest.files) < len(snapshots) + len(manifest.soups) + filed:
            raise SnapshotError(f"{where} names the same file twice; restore it from a copy.")
        steps = [snapshot.global_step for snapshot in snapshots]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise SnapshotError(f"{where}: the snapshots are not in the order of training; restore it from a copy.")
        return manifest


def _to_json(snapshot: Snapshot) -> dict[str, Any]:
    document: dict[str, Any] = dict(vars(snapshot))
    del document["metrics"]
    if isinstance(snapshot, SoupSnapshot):
        document["members"] = [dict(vars(member)) for member in snapshot.members]
    if isinstance(snapshot.metrics, FiledMetrics):
        filed = snapshot.metrics
        return {**document, "metrics_file": {"file": filed.file, "sha256": filed.sha256, "size": filed.size}}
    return {**document, "metrics": dict(snapshot.metrics)}


def _read_snapshot(fields: Fields, folder: Folder) -> Snapshot:
    where = str(folder / MANIFEST_NAME)
    filed = fields.optional_object("metrics_file")
    snapshot = Snapshot(
        epoch=fields.natural("epoch"),
        global_step=fields.natural("global_step"),
        file=fields.text("file"),
        sha256=fields.text("sha256"),
        size=fields.natural("size"),
        learning_rate=fields.optional_number("learning_rate"),
        metrics=fields.numbers("metrics") if filed is None else _read_filed(filed, folder),
    )
    if not is_plain_name(snapshot.file) or not snapshot.file.endswith(".safetensors"):
        raise SnapshotError(
            f"{where} names the file {snapshot.file!r}; only plain names of .safetensors files in the same folder are "
            "read, never '..', absolute paths or links. Restore the manifest from a copy."
        )
    _check_sha256(snapshot.file, snapshot.sha256, where)
    return snapshot


def _read_soup(fields: Fields, folder: Folder) -> SoupSnapshot:
    plain = _read_snapshot(fields, folder)
    members = tuple(
        SoupMember(member.text("file"), member.text("sha256"), member.natural("epoch"), member.natural("global_step"))
        for member in fields.objects("members")
    )
    return SoupSnapshot(**vars(plain), members=members, recipe=fields.plain("recipe"))


def _read_filed(fields: Fields, folder: Folder) -> FiledMetrics:
    where = str(folder / MANIFEST_NAME)
    filed = FiledMetrics(folder, fields.text("file"), fields.text("sha256"), fields.natural("size"))
    if not is_plain_name(filed.file) or not filed.file.endswith(METRICS_SUFFIX):
        raise SnapshotError(
            f"{where} names the file {filed.file!r} for metrics; only plain names of {METRICS_SUFFIX} files in "
            "the same folder are read. Restore the manifest from a copy."
        )
    _check_sha256(filed.file, filed.sha256, where)
    return filed


def _check_sha256(file: str, sha256: str, where: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise SnapshotError(f"{where}: the sha256 of {file!r} is not 64 hexadecimal digits.")
