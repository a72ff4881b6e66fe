"""What a stage gets: a device for some time, and a file that holds each result as soon as it is there.

Imports no torch, so that the runner starts at once and holds no device.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("cuda_tests", "harvesting", "distilling", "selecting", "paper")
SHARES = {"cuda_tests": 0.1, "harvesting": 0.16, "distilling": 0.2, "selecting": 0.16, "paper": 0.38}
RUNNING, FINISHED, OUT_OF_TIME, FAILED = "running", "finished", "out of time", "failed"


class Results:
    """One stage's file in OUT, written anew with each result.

    Args:
        path: The JSON file; what it holds is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @classmethod
    def of(cls, out: Path, stage: str) -> Results:
        """The results of a stage.

        Args:
            out: Folder of all results.
            stage: One of ``STAGES``.
        """
        return cls(out / f"{stage}.json")

    def update(self, **values: Any) -> None:
        """Set values, and write all of them: whole or not at all."""
        self.document |= values
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        new.replace(self._path)  # what a kill leaves is one of both

    @property
    def state(self) -> str | None:
        """How far the stage is; None before it began."""
        state: str | None = self.document.get("state")
        return state


@dataclass(frozen=True)
class Lease:
    """One stage's time on a device.

    Attributes:
        results: The stage's file.
        work: Folder for what is large; it is kept for a run that goes on, and need not be brought back.
        device: ``cuda`` or ``cpu``. On the CPU all is done at toy size.
        data: Folder of the packed images; None where none was given.
        deadline: When the stage should be over, by :func:`time.monotonic`.
    """

    results: Results
    work: Path
    device: str
    data: Path | None
    deadline: float

    @property
    def toy(self) -> bool:
        """Whether speed does not matter."""
        return self.device == "cpu"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, what: str, value: float, target: float | None = None, note: str = "") -> None:
        """Write one measured value.

        Args:
            what: Was measured.
            value: What came out.
            target: Is met by a value that is not larger; None where there is none.
            note: Details.
        """
        rows = [row for row in self.results.document.get("rows", []) if row["what"] != what]
        self.results.update(rows=[*rows, {"what": what, "value": value, "target": target, "note": note}])

    def note(self, text: str) -> None:
        """Write what can't be measured here, or was left out, and why."""
        notes = self.results.document.get("notes", [])
        self.results.update(notes=[*(note for note in notes if note != text), text])
