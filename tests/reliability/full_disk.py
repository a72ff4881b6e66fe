"""Disks that are really full: a small tmpfs in a namespace of its own, and the limit on a file's size."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning_ckptkd import SnapshotError, SnapshotStore
from tests.reliability.forking import fork, main, wait
from tests.reliability.harvests import check_clean, check_harvest, commit

_TMPFS_BYTES = 64 * 1024


def full_disk_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` disks that fill up, by turns of the two kinds.

    Raises:
        AssertionError: If the error is unclear or something committed is lost.
    """
    tmpfs = _can_mount()
    kinds = [_limited, _mounted] if tmpfs else [_limited]
    for trial in range(count):
        with tempfile.TemporaryDirectory(prefix="ckptkd-") as scratch:
            kinds[trial % len(kinds)](Path(scratch), trial)
    return {"trials": count, "of_these_on_a_tmpfs": count // 2 if tmpfs else 0}


def _can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _limited(scratch: Path, trial: int) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000 + 700 * trial, resource.RLIM_INFINITY))
        fill(scratch / "harvest", "File too large")

    assert wait(fork(work)) == 0


def _mounted(scratch: Path, trial: int) -> None:
    size = _TMPFS_BYTES + 4096 * trial
    script = f"mount -t tmpfs -o size={size} none {scratch} && {sys.executable} -m {__spec__.name} {scratch}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def fill(folder: Path, reason: str) -> None:
    """Commit until the disk is full, make room, go on."""
    ballast = folder.parent / "ballast"
    ballast.write_bytes(bytes(1500))
    committed = 0
    with SnapshotStore.create(folder, "run", {}) as store:
        try:
            for epoch in range(1000):
                commit(store, epoch)
                committed += 1
        except SnapshotError as error:
            for piece in (reason, str(folder), "It needs", "are free there", "Make room"):
                assert piece in str(error), str(error)
        assert committed < 1000
        check_harvest(folder, set(range(committed)), set(range(committed)))
        assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    ballast.unlink()
    if committed:
        check_clean(folder)


if __name__ == "__main__":
    if len(sys.argv) == 2 and "/" in sys.argv[1]:
        fill(Path(sys.argv[1]) / "harvest", "No space left on device")
    else:
        main(full_disk_trials)
