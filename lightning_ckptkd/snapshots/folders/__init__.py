"""Folders that a harvest can be in: on this machine, or behind an fsspec URL."""

from __future__ import annotations

from pathlib import Path

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.folders.base import Folder, Part, is_plain_name, run_tag
from lightning_ckptkd.snapshots.folders.local import LocalFolder
from lightning_ckptkd.snapshots.folders.remote import RemoteFolder

__all__ = ["Folder", "LocalFolder", "Part", "RemoteFolder", "is_plain_name", "open_folder", "run_tag"]

_LOCAL_SCHEMES = ("file://", "local://")


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder at a path or an fsspec URL such as ``s3://bucket/run/snapshots``; nothing is made or read.

    Raises:
        SnapshotError: If the path can't be one, or if the URL's scheme is unknown or needs a package that is
            missing.
    """
    if isinstance(location, Folder):
        return location
    text = str(location)
    if "\0" in text:
        raise SnapshotError(f"{text!r} can't be a folder: it has a NUL character.")
    for scheme in _LOCAL_SCHEMES:
        if text.startswith(scheme):
            text = text[len(scheme) :]
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(text).expanduser())
