"""The model card of a student: what it was distilled from, by which choice, and its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots import SnapshotStore
from lightning_ckptkd.snapshots.checkpoint_file import open_checkpoint
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.snapshots.folders import Folder, open_folder, run_tag
from lightning_ckptkd.snapshots.selection import SELECTION_NAME, Candidate, Selection

CARD_NAME = "README.md"
METRICS_KEY, FILES_KEY = "lightning_ckptkd_metrics", "lightning_ckptkd_teachers"
_OPTIONS = ("choice", "alpha", "temperature", "schedule", "teacher_weights", "task")
_SHOWN, _ROWS = 80, 100  # characters of a cell, rows of a table: a checkpoint is untrusted
_HEAD = """---
library_name: pytorch
tags:
- knowledge-distillation
- lightning-ckptkd
---

# Student

A student of {count}, distilled with lightning_ckptkd.

The licence is yours to say: add `license:` above. Those of the training data, of what the teachers were made from and
of the network's code may have a word in it.
"""


def write_model_card(checkpoint: str | Path, folder: str | Path, snapshots: str | Path | None = None) -> str:
    """Write ``README.md`` of a student into a folder, for the Hugging Face Hub and people.

    With the files that :func:`export_student` and :func:`export_network` write beside it, the folder can be uploaded as
    it is: ``huggingface_hub.upload_folder(repo_id=..., folder_path=...)``. No code of the checkpoint runs, and the
    harvest that it names is not looked for.

    Args:
        checkpoint: The ``.ckpt`` file of a distillation.
        folder: Where the student is; made where it is not there.
        snapshots: The teachers' harvest, for their epochs and the choice among them.

    Returns:
        The card's address.

    Raises:
        ArgumentError: If there is a card already, or the harvest is not the teachers'.
        SnapshotError: If the checkpoint or the harvest can't be read, or the card can't be written.
    """
    place = free_place(folder)
    with open_checkpoint(Path(checkpoint).expanduser(), "exported", "give a .ckpt file of a distillation") as opened:
        names = ("hyper_parameters", "epoch", "global_step", METRICS_KEY, FILES_KEY)
        known = {name: json_safe(opened.get(name)) for name in names}
        parameters = [shape for name, (_, shape) in opened.describe().items() if name.startswith("student.")]
    teachers = _dicts(known[FILES_KEY])
    if not parameters:
        raise SnapshotError(f"{checkpoint} holds no student. Give a .ckpt file of a distillation.")
    chosen = _of_harvest(teachers, snapshots) if snapshots is not None else []
    text = "\n".join([_HEAD.format(count=_count(teachers)), *chosen, *_facts(known), *_teachers(teachers)])
    place.make()
    place.write(CARD_NAME, [text.encode()], run_tag(str(folder)))
    return place / CARD_NAME


def free_place(folder: str | Path) -> Folder:
    """The folder of a card to be.

    Raises:
        ArgumentError: If there is a card already.
    """
    place = open_folder(folder)
    if place.exists(CARD_NAME):
        raise ArgumentError(f"{place / CARD_NAME} exists and is not overwritten. Remove it, or choose another folder.")
    return place


def _count(teachers: Sequence[Mapping[str, Any]]) -> str:
    """How many teachers there were, in words; a soup is told by its file's name."""
    if len(teachers) == 1 and str(teachers[0].get("file")).startswith("soup-"):
        return "the mean of several snapshots of a training run"
    number = str(len(teachers)) if teachers else "chosen"
    return f"{number} snapshot{'s' * (len(teachers) != 1)} of a training run"


def _facts(known: Mapping[str, Any]) -> Iterator[str]:
    options = known["hyper_parameters"] if isinstance(known["hyper_parameters"], dict) else {}
    yield "## How it was trained\n"
    told = {name: options[name] for name in _OPTIONS if options.get(name) is not None}
    yield from _table(("option", "value"), [*told.items(), *((name, known[name]) for name in ("epoch", "global_step"))])
    numbers = known[METRICS_KEY] if isinstance(known[METRICS_KEY], dict) else {}
    if numbers:
        yield "\n## Numbers\n\nAs they were logged when the checkpoint was saved, on the run's own data.\n"
        found = [(name, value) for name, value in numbers.items() if isinstance(value, (int, float))]
        yield from _table(("metric", "value"), [(name, f"{value:.4g}") for name, value in found])


def _teachers(teachers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "\n## Teachers' files\n"
    yield from _table(("file", "SHA-256"), [(item.get("file"), item.get("sha256")) for item in teachers])
    yield ""


def _of_harvest(teachers: Sequence[Mapping[str, Any]], snapshots: str | Path) -> list[str]:
    store = SnapshotStore.open(snapshots)
    hashes = {item.get("sha256") for item in teachers}
    soups = [soup for soup in store.soups if soup.sha256 in hashes]
    taught_by = hashes & {snapshot.sha256 for snapshot in (*store.snapshots, *soups)}
    hashes |= {member.sha256 for soup in soups for member in soup.members}
    own = [snapshot for snapshot in store.snapshots if snapshot.sha256 in hashes]
    if not own:
        raise ArgumentError(
            f"snapshots: {store.folder} holds none of the {len(teachers)} teachers that the checkpoint names. Give the "
            "harvest that the student was distilled from, or leave it out."
        )
    lines = ["## Distilled from\n"]
    if soups:
        lines.append("One network, the mean of the weights of these snapshots (a soup).\n")
    if not store.folder.exists(SELECTION_NAME):
        return [*lines, *_table(("epoch", "step"), [(item.epoch, item.global_step) for item in own]), ""]
    selection = Selection.read(store)
    candidates = {item.sha256: item for item in selection.candidates}
    rows = [(item.epoch, item.global_step, *_scores(candidates.get(item.sha256))) for item in own]
    samples = selection.probe.get("size")
    by = f"by the rule {_cell(selection.rule)}{f' on {_cell(samples)} samples' if samples is not None else ''}"
    hash_of = {item.file: item.sha256 for item in (*store.snapshots, *store.soups)}
    if {hash_of[name] for name in selection.chosen} == taught_by:
        lines.append(f"Of {len(store.snapshots)} snapshots, chosen {by}.\n")
    else:  # as where choice= names epochs, or the harvest was selected from again
        words = (
            f"Of {len(store.snapshots)} snapshots. The harvest's selection, {by}, chooses others; scores are its own."
        )
        lines.append(f"{words}\n")
    return [*lines, *_table(("epoch", "step", "score", "I(X;F) nats", "I(Y;F) nats", "accuracy"), rows), ""]


def _scores(found: Candidate | None) -> tuple[str, ...]:
    values = (
        (None,) * 4
        if found is None
        else (found.score, found.input_information, found.label_information, found.accuracy)
    )
    return tuple("" if value is None else f"{value:.4g}" for value in values)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in itertools.islice(rows, _ROWS):
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value: object) -> str:
    """Text that is no Markdown, HTML or end of a line, whatever it was."""
    return "".join(
        letter if letter.isprintable() and letter not in "|`<>[]*_&\\" else f"&#{ord(letter)};"
        for letter in str(value)[:_SHOWN]
    )


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
