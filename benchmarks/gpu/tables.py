"""All results in OUT as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.lease import STAGES, Results

# What was promised of a GPU: stage, row, and the value that is to be at most.
TARGETS = (
    ("harvesting", "25 M parameters: training blocked by a snapshot / by ModelCheckpoint", 0.10),
    ("harvesting", "300 M parameters: training blocked by a snapshot / by ModelCheckpoint", 0.10),
    ("distilling", "4 teachers: the fastest path / plain loop", 0.35),
    ("distilling", "4 teachers: cached epoch / epoch of plain training", 1.05),
    ("selecting", "ranking the snapshots / their forward passes", 1.15),
)


def make_summary(out: Path) -> str:
    """Targets, states, all rows, notes and what failed.

    Args:
        out: Folder of the results.
    """
    documents = {stage: Results.of(out, stage).document for stage in STAGES}
    parts = ["# One GPU", _table(("stage", "state", "seconds", "device"), _states(documents))]
    parts += ["## Targets", _table(("measured", "value", "target", "verdict"), _targets(documents))]
    for stage, document in documents.items():
        parts.append(f"## {stage}")
        rows = document.get("rows", [])
        if rows:
            cells = [(row["what"], f"{row['value']:.4g}", row["note"]) for row in rows]
            parts.append(_table(("measured", "value", "details"), cells))
        parts += [f"- {note}" for note in document.get("notes") or []]
        if document.get("traceback"):
            parts.append(f"```\n{document['traceback'].strip()}\n```")
    return "\n\n".join(parts) + "\n"


def target_of(what: str) -> float:
    """The target of a row.

    Args:
        what: Its name in ``TARGETS``.
    """
    return next(target for _, name, target in TARGETS if name == what)


def _states(documents: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            stage,
            document.get("state", "not run"),
            str(document.get("seconds", "")),
            str(document.get("about", {}).get("device", "")),
        )
        for stage, document in documents.items()
    ]


def _targets(documents: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for stage, what, target in TARGETS:
        document = documents[stage]
        row = next((row for row in document.get("rows", []) if row["what"] == what), None)
        on_gpu = document.get("about", {}).get("device", "cpu") != "cpu"
        if row is None:
            value, verdict = "", "not run"
        else:
            value = f"{row['value']:.3g}"
            verdict = "not run on a GPU" if not on_gpu else "met" if row["value"] <= target else "MISSED"
        found.append((what, value, f"<= {target:g}", verdict))
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )
