"""A choice for people: the table in the terminal, the numbers for loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_ckptkd.selecting.picture import PICTURE_NAME, as_sentence
from lightning_ckptkd.selecting.rules import Column, Words
from lightning_ckptkd.selecting.soup_words import describe_soup
from lightning_ckptkd.snapshots.selection import SELECTION_NAME, Candidate, Selection, Worth
from lightning_ckptkd.snapshots.store import SnapshotStore


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal; the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|" + "|".join("-" * (width + 2) if not i else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    )
    return "\n".join([line(header), rule, *map(line, rows)])


def format_selection(selection: Selection, words: Words, store: SnapshotStore) -> str:
    """The table of every snapshot, and where the files are.

    Args:
        selection: The choice.
        words: What its rule calls its numbers.
        store: The harvest.
    """
    columns = [
        *words.columns,
        Column("accuracy", "accuracy %", percent=True),
        Column("score", words.score, "score_error"),
        Column("student_information", "I(Y;S) nats", "student_error"),
    ]
    known = [column for column in columns if _known(selection.candidates, column.field)]
    rows = [
        [
            f"{candidate.epoch}",
            f"{candidate.global_step}",
            *(_cell(candidate, column) for column in known),
            "" if candidate.rank is None else str(candidate.rank),
            _fate(candidate, selection),
        ]
        for candidate in selection.candidates
    ]
    header = ["epoch", "step", *(column.header for column in known), "rank", ""]
    epochs = {candidate.file: f"epoch {candidate.epoch}" for candidate in selection.candidates}
    notes = [
        f"{candidate.file} is excluded: {candidate.excluded}"
        for candidate in selection.candidates
        if candidate.excluded
    ]
    notes += [
        f"joint choice: {', '.join(epochs[step.file] for step in selection.joint[: place + 1])}: "
        f"I(X;F) {_number(step.input_information)}, I(Y;F) {_number(step.label_information)} nats, "
        f"adds {_number(step.gain, step.gain_error)} to the score"
        for place, step in enumerate(selection.joint)
    ]
    if selection.worth is not None:
        notes.insert(0, as_sentence(selection.worth))
    notes += _race_note(selection)
    if selection.soup:
        notes.append(describe_soup(selection.soup))
    if selection.proxy:
        notes.append(_proxy_note(selection.proxy))
    files = f"Written: {store.folder / SELECTION_NAME}, {store.folder / PICTURE_NAME}"
    return "\n".join([_title(selection), format_table(header, rows), *notes, files])


def _fate(candidate: Candidate, selection: Selection) -> str:
    if candidate.file in selection.taught_by:
        return "chosen"
    if candidate.scored_on is not None:
        return f"left at {candidate.scored_on}"
    return "excluded" if candidate.excluded else ""


def _race_note(selection: Selection) -> list[str]:
    left = [candidate.scored_on for candidate in selection.candidates if candidate.scored_on is not None]
    if not left:
        return []
    return [
        f"race: {len(left)} of {len(selection.candidates)} snapshots left after a part of the samples, of which their "
        "numbers are: by their errors they are not among the best (race=False scores all on all)"
    ]


def _title(selection: Selection) -> str:
    title = f"{len(selection.taught_by)} of {len(selection.candidates)} snapshots chosen by rule {selection.rule!r}"
    if selection.soup.get("taken"):
        title += " for a soup"
    if selection.probe:
        title += f" on {selection.probe['size']} probe samples"
    entropy = selection.probe.get("label_entropy")
    return title if entropy is None else f"{title}, H(Y) = {entropy:.3f} nats"


def _cell(candidate: Candidate, column: Column) -> str:
    value, error = getattr(candidate, column.field), getattr(candidate, column.error) if column.error else None
    if column.percent and value is not None:
        return f"{100 * value:.1f}"
    return _number(value, error)


def _proxy_note(proxy: Mapping[str, Any]) -> str:
    what = f"student proxy: {proxy['student']}, {proxy['steps']} steps of {proxy['batch_size']} samples"
    if proxy["cancelled"]:
        return f"{what}: cancelled, this is the choice without it. To go on with the students trained, choose again."
    return f"{what} from each of {proxy['students']} snapshots, in {proxy['seconds']:.1f} s"


def numbers_by_step(selection: Selection) -> Iterator[tuple[int, dict[str, float]]]:
    """What a logger gets: the global step of each snapshot, and its numbers.

    At the last one's step is what the choice is worth: ``selection/last_lacks_nats``, its error, and
    ``selection/matters``, 1 or 0, or missing where it can't be said.
    """
    names = ("input_information", "label_information", "accuracy", "score", "student_information")
    for candidate in selection.candidates:
        numbers = {f"selection/{name}": getattr(candidate, name) for name in names}
        known = {name: value for name, value in numbers.items() if value is not None}
        if known:
            known["selection/chosen"] = float(candidate.file in selection.taught_by)
        if candidate.scored_on is not None:
            known["selection/scored_on"] = float(candidate.scored_on)
        if candidate is selection.candidates[-1]:
            known |= _numbers_of_worth(selection.worth)
        if known:
            yield candidate.global_step, known


def _numbers_of_worth(worth: Worth | None) -> dict[str, float]:
    if worth is None:
        return {}
    numbers = {
        "selection/last_lacks_nats": worth.lacks_nats,
        "selection/last_lacks_error": worth.standard_error,
        "selection/matters": worth.matters,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _known(candidates: Sequence[Candidate], name: str) -> bool:
    return any(getattr(candidate, name) is not None for candidate in candidates)
