"""The console script ``ckptkd``: the fastest way to what its words ask for."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_ckptkd.commands.light import run_light
from lightning_ckptkd.commands.told_at_once import told_at_once
from lightning_ckptkd.errors import CkptKDError


def run() -> None:
    """The console script: an error of ours is one message, not a traceback.

    Classes in the current folder are found, as by ``python -m``; not by commands that make no object of a user's.
    """
    words = sys.argv[1:]
    told = told_at_once(words)
    if told is not None:
        print(told, end="")
        return
    try:
        if not run_light(words):
            _run_whole(words)
    except CkptKDError as error:
        sys.exit(f"ckptkd: error: {error}")


def _run_whole(words: list[str]) -> None:
    from lightning_ckptkd.commands.cli import main
    from lightning_ckptkd.commands.export_command import runs_code

    if words[:1] != ["harvest"] and (words[:1] != ["export"] or runs_code(words)):
        sys.path.insert(0, str(Path.cwd()))
    main()
