"""Metrics of one snapshot in a file of their own, where they would swell the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from typing_extensions import override

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.folders import Folder

METRICS_SUFFIX = ".metrics.json"
_FORMAT, _VERSION = "lightning_ckptkd.metrics", 1
_MAX_INLINE_BYTES = 2048  # of one snapshot's metrics in the manifest
_MAX_INLINE_TOTAL = 2**22  # of all of them: a quarter of what is read of a manifest


class FiledMetrics(Mapping[str, float | None]):
    """Metrics that are read from their file, and verified, when they are first asked for.

    Args:
        folder: The harvest's folder.
        file: Name of the file in it.
        sha256: Its SHA-256, in hexadecimal.
        size: Its size in bytes.

    Raises:
        SnapshotError: When they are asked for, if the file is missing or is not what it should be.
    """

    def __init__(self, folder: Folder, file: str, sha256: str, size: int) -> None:
        self.file = file
        self.sha256 = sha256
        self.size = size
        self._folder = folder
        self._read: dict[str, float | None] | None = None

    @override
    def __getitem__(self, name: str) -> float | None:
        return self._metrics()[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics())

    @override
    def __len__(self) -> int:
        return len(self._metrics())

    @override
    def __repr__(self) -> str:
        return f"FiledMetrics({self.file!r})"

    def _metrics(self) -> dict[str, float | None]:
        if self._read is None:
            where = self._folder / self.file
            data, document = self._folder.read_json_file(self.file, size=self.size)
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise SnapshotError(
                    f"{where} does not have the SHA-256 that the manifest says: its content was changed. Restore it "
                    "from a copy; the snapshot's weights are not touched by it."
                )
            fields = Fields(document, where)
            fields.header(_FORMAT, _VERSION)
            self._read = fields.numbers("metrics")
        return self._read


def write_metrics(folder: Folder, metrics: Mapping[str, float | None], stem: str, tag: str) -> FiledMetrics:
    """Write metrics into a file whose name is ``stem`` and eight digits of its hash.

    Raises:
        SnapshotError: If it can't be written.
    """
    document = {"format": _FORMAT, "version": _VERSION, "metrics": dict(metrics)}
    data = (json.dumps(document, allow_nan=False) + "\n").encode()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{sha256[:8]}{METRICS_SUFFIX}"
    folder.write_json_file(name, data, tag)
    return FiledMetrics(folder, name, sha256, len(data))


def find_large(metrics: list[Mapping[str, float | None]]) -> set[int]:
    """Places of the metrics that should have a file of their own: large ones, and all beyond a sum."""
    large: set[int] = set()
    total = 0
    for place, found in enumerate(metrics):
        if isinstance(found, FiledMetrics):
            continue
        size = len(json.dumps(found))
        if size > _MAX_INLINE_BYTES or total + size > _MAX_INLINE_TOTAL:
            large.add(place)
        else:
            total += size
    return large
