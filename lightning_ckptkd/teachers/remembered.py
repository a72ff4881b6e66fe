"""Which way of running teachers was the fastest before: a small file in the user's cache folder.

The file is untrusted: it is read up to a limit, what it says is checked, and all that it can do is to name ways that
this package knows, whose logits are compared with the plain loop's before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.folders import LocalFolder
from lightning_ckptkd.tasks.batch import Batch, tensors_in
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath, device_of
from lightning_ckptkd.teachers.processor import describe_processor

CACHE_VARIABLE = "LIGHTNING_CKPTKD_CACHE"
WAYS_NAME = "ways.json"
_FORMAT, _VERSION = "lightning_ckptkd.ways", 1
_LIMIT, _ENTRIES = 1 << 20, 500  # bytes that are read; ways that are kept
_KEY = re.compile(r"[0-9a-f]{64}")
_NAMES = {field.name for field in fields(TeacherPath)} - {"compiled"}  # which may be worth it in some runs only


@dataclass(frozen=True)
class KnownWay:
    """The fastest way that was found.

    Attributes:
        path: The fastest way without compiling.
        seconds: For a batch; None where nothing was timed.
        compiled: Whether compiled code was faster; None where it was not tried.
    """

    path: TeacherPath
    seconds: float | None
    compiled: bool | None = None


class WayMemory:
    """The file's part for one network, batch shape and machine.

    Args:
        folder: Where the file is; it need not exist.
        key: As :func:`way_key` makes it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = LocalFolder(folder), key
        self.file = folder / WAYS_NAME

    @classmethod
    def of_user(cls, key: str) -> WayMemory | None:
        """In the user's cache folder; None where there is none, or the environment says that there should be none."""
        folder = cache_folder()
        return None if folder is None else cls(folder, key)

    def read(self) -> KnownWay | None:
        """What is remembered; None, with one line where something is wrong with the file, where nothing is."""
        try:
            document = self._ways().get(self._key)
            return None if document is None else _read_way(document, str(self.file))
        except SnapshotError as error:
            rank_zero_info(f"The teachers' fastest way is found anew, what was remembered can't be used: {error}")
            return None

    def write(self, way: KnownWay) -> bool:
        """Remember a way; whether that was possible, with one line where it was not.

        The file is written beside its place and moved there. Of two processes that do so at once the later one's
        stands, and what the other remembered may have to be found once more.
        """
        try:
            ways = self._ways()
        except SnapshotError:  # told when it was read
            ways = {}
        ways.pop(self._key, None)
        ways[self._key] = {"ways": way.path.names(), "seconds": way.seconds, "compiled": way.compiled}
        kept = dict(list(ways.items())[-_ENTRIES:])
        document = {"format": _FORMAT, "version": _VERSION, "ways": kept}
        try:
            self._folder.make()
            self._folder.write(WAYS_NAME, [json.dumps(document).encode()], "ways")
        except (SnapshotError, OSError) as error:
            rank_zero_info(f"The teachers' fastest way is not remembered: {error}")
            return False
        return True

    def _ways(self) -> dict[str, Any]:
        """All ways by key, those of a wrong form left out; raises SnapshotError."""
        if not self._folder.exists(WAYS_NAME):
            return {}
        try:
            document = json.loads(self._folder.read(WAYS_NAME, limit=_LIMIT))
        except (ValueError, RecursionError) as error:
            raise SnapshotError(f"{self.file} is not JSON.") from error
        file = Fields(document, str(self.file))
        file.header(_FORMAT, _VERSION)
        ways = document.get("ways")
        if not isinstance(ways, dict):
            raise SnapshotError(f"{self.file} has no ways.")
        return {key: way for key, way in ways.items() if _KEY.fullmatch(key) and isinstance(way, dict) and len(way) < 9}


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder in which this package remembers things of this machine; None where nothing is to be remembered.

    ``LIGHTNING_CKPTKD_CACHE`` names it (empty: none); else it is in ``XDG_CACHE_HOME`` or the platform's own place.
    """
    own, given = environment.get(CACHE_VARIABLE), environment.get("XDG_CACHE_HOME", "")
    try:
        if own is not None:
            return Path(own).expanduser() if own else None
        if Path(given).is_absolute():  # else it is to be ignored, as its specification has it
            return Path(given) / "lightning_ckptkd"
        home = Path.home()
    except RuntimeError:  # nobody knows where that is
        return None
    if sys.platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "lightning_ckptkd"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lightning_ckptkd"


def way_key(ensemble: TeacherEnsemble, batch: Batch, options: list[bool]) -> str:
    """A hash of all that the fastest way depends on; before anything is folded.

    Args:
        ensemble: The teachers.
        batch: On their device; its shapes and types count.
        options: What may be tried beside the exact ways.
    """
    device = device_of(batch)
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None
    inputs = [[list(tensor.shape), str(tensor.dtype)] for tensor in tensors_in(batch.inputs)]
    packages = {name: version(name) for name in ("lightning-ckptkd", "torch")}
    networks = [structure(member) for member in ensemble.members]
    document = [networks, inputs, describe_processor(device), packages, options, autocast]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def structure(network: nn.Module) -> str:
    """A hash of a network's modules and of its weights' names, shapes and types."""
    state = [(name, tuple(part.shape), str(part.dtype)) for name, part in network.named_parameters()]
    state += [(name, tuple(part.shape), str(part.dtype)) for name, part in network.named_buffers()]
    words = re.sub(r"0x[0-9a-f]+", "", repr(network))  # addresses, which differ from run to run
    return hashlib.sha256(f"{words} {state}".encode()).hexdigest()


def _read_way(document: dict[str, Any], where: str) -> KnownWay:
    entry = Fields(document, where)
    names, seconds = document.get("ways"), entry.optional_number("seconds")
    if not isinstance(names, list) or not all(isinstance(name, str) and name in _NAMES for name in names):
        raise SnapshotError(f"{where} names ways that are not known.")
    return KnownWay(TeacherPath(**dict.fromkeys(names, True)), seconds, entry.optional_flag("compiled"))
