"""Every call that touches the disk fails, once or from then on, with each of the errors that disks give."""

from __future__ import annotations

import errno
import shutil
import warnings
from pathlib import Path
from typing import Any

from lightning_ckptkd import SnapshotError
from tests.reliability.faults import watched_disk
from tests.reliability.forking import main
from tests.reliability.harvests import check_clean, check_harvest, scratch_folder, write_epochs

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
_COMMITTED = 2


def error_trials() -> dict[str, Any]:
    """All calls of a writer x four errors x once or for ever.

    Raises:
        AssertionError: If anything but one SnapshotError comes out, or an earlier snapshot is not intact.
    """
    refused = survived = 0
    with scratch_folder() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        write_epochs(base, range(_COMMITTED))
        calls = 0
        for new in (False, True):
            with watched_disk(lambda call, name: None) as watched:
                trial = _copy(base, new)
                write_epochs(trial, range(_COMMITTED, 4), metrics=True)
                shutil.rmtree(trial)
            calls += watched.calls
            for call in range(1, watched.calls + 1):
                for error in ERRORS:
                    for for_ever in (False, True):
                        if _fail_once(base, new, call, error, for_ever):
                            refused += 1
                        else:
                            survived += 1
    return {"calls": calls, "trials": refused + survived, "refused": refused, "survived": survived}


def _fail_once(base: Path, new: bool, call: int, error: int, for_ever: bool) -> bool:
    folder = _copy(base, new)
    where = f"call {call}, {errno.errorcode[error]}, {'for ever' if for_ever else 'once'}"
    failed: list[str] = []

    def fail(n: int, name: str) -> None:
        if n == call or (for_ever and n > call):
            failed.append(name)
            raise OSError(error, "injected")

    refused = False
    with watched_disk(fail), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            write_epochs(folder, range(_COMMITTED, 4), metrics=True)
        except SnapshotError as raised:
            refused = True
            assert "injected" in str(raised), f"{where}: {raised}"
            assert str(folder) in str(raised), f"{where}: {raised}"
    assert refused or set(failed) <= {"unlink", "listdir", "ftruncate", "pwrite", "close"}, f"{where}: {failed}"
    assert refused or not for_ever or set(failed) <= {"unlink", "close", "listdir"}, f"{where}: {failed}"
    old = set() if new else set(range(_COMMITTED))
    check_harvest(folder, old, set(range(4)))
    write_epochs(folder, range(4, 5))
    check_harvest(folder, old | {4}, set(range(5)))
    check_clean(folder)
    shutil.rmtree(folder)
    return refused


def _copy(base: Path, new: bool) -> Path:
    folder = base.parent / "trial" / "harvest"
    shutil.rmtree(folder.parent, ignore_errors=True)
    if new:
        folder.parent.mkdir()
    else:
        shutil.copytree(base, folder)
    return folder


if __name__ == "__main__":
    main(error_trials)
