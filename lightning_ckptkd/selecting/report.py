"""A choice for people: the table in the terminal, the picture, the numbers for loggers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_ckptkd.snapshots.selection import SELECTION_NAME, Candidate, JointChoice, Selection
from lightning_ckptkd.snapshots.store import SnapshotStore

_SHARES = {"max": "share of the largest", "minmax": "share of the range", "entropy": "share of the entropy"}
PICTURE_NAME = "selection.png"
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#666666"  # for colour-blind readers too


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


def format_selection(selection: Selection, store: SnapshotStore) -> str:
    """The table of every snapshot, and where the files are."""
    tried = any(candidate.student_information is not None for candidate in selection.candidates)
    rows = [
        [
            f"{candidate.epoch}",
            f"{candidate.global_step}",
            _number(candidate.input_information, candidate.input_error),
            _number(candidate.label_information, candidate.label_error),
            "" if candidate.accuracy is None else f"{100 * candidate.accuracy:.1f}",
            _number(candidate.score, candidate.score_error),
            *([_number(candidate.student_information, candidate.student_error)] if tried else []),
            "" if candidate.rank is None else str(candidate.rank),
            "chosen" if candidate.file in selection.chosen else "excluded" if candidate.excluded else "",
        ]
        for candidate in selection.candidates
    ]
    header = ["epoch", "step", "I(X;F) nats", "I(Y;F) nats", "accuracy %", "score", *(["I(Y;S) nats"] if tried else [])]
    header += ["rank", ""]
    epochs = {candidate.file: f"epoch {candidate.epoch}" for candidate in selection.candidates}
    notes = [
        f"{candidate.file} is excluded: {candidate.excluded}"
        for candidate in selection.candidates
        if candidate.excluded
    ]
    title = f"{len(selection.chosen)} of {len(rows)} snapshots chosen by rule {selection.rule!r}"
    if selection.probe:
        title += f" on {selection.probe['size']} probe samples, H(Y) = {selection.probe['label_entropy']:.3f} nats"
    notes += [
        f"joint choice: {', '.join(epochs[step.file] for step in selection.joint[: place + 1])}: "
        f"I(X;F) {_number(step.input_information)}, I(Y;F) {_number(step.label_information)} nats, "
        f"adds {_number(step.gain, step.gain_error)} to the score"
        for place, step in enumerate(selection.joint)
    ]
    if selection.proxy:
        notes.append(_proxy_note(selection.proxy))
    files = f"Written: {store.folder / SELECTION_NAME}, {store.folder / PICTURE_NAME}"
    return "\n".join([title, format_table(header, rows), *notes, files])


def _proxy_note(proxy: Mapping[str, Any]) -> str:
    what = f"student proxy: {proxy['student']}, {proxy['steps']} steps of {proxy['batch_size']} samples"
    if proxy["cancelled"]:
        return f"{what}: cancelled, this is the choice without it. To go on with the students trained, choose again."
    return f"{what} from each of {proxy['students']} snapshots, in {proxy['seconds']:.1f} s"


def numbers_by_step(selection: Selection) -> Iterator[tuple[int, dict[str, float]]]:
    """What a logger gets: the global step of each snapshot, and its numbers."""
    names = ("input_information", "label_information", "accuracy", "score", "student_information")
    for candidate in selection.candidates:
        numbers = {f"selection/{name}": getattr(candidate, name) for name in names}
        known = {name: value for name, value in numbers.items() if value is not None}
        if known:
            yield (
                candidate.global_step,
                {**known, "selection/chosen": float(candidate.file in selection.chosen)},
            )


def draw_selection(selection: Selection, store: SnapshotStore) -> None:
    """Write ``selection.png``: the information plane, and terms and accuracy over epochs, the chosen ones marked."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    plane, course = figure.subplots(1, 2)
    usable = [candidate for candidate in selection.candidates if candidate.excluded is None]
    chosen = [candidate for candidate in usable if candidate.file in selection.chosen]
    _draw_plane(figure, plane, usable, chosen, selection.joint)
    _draw_course(course, usable, chosen, selection)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    store.folder.write(PICTURE_NAME, [buffer.getvalue()], store.manifest.tag)


def _draw_plane(
    figure: Figure,
    axes: Axes,
    usable: Sequence[Candidate],
    chosen: Sequence[Candidate],
    joint: Sequence[JointChoice],
) -> None:
    axes.set(title="Information plane", xlabel="I(X;F) (nats)", ylabel="I(Y;F) (nats)")
    points = [candidate for candidate in usable if candidate.input_information is not None]
    if not points:
        axes.text(0.5, 0.5, "this rule does not estimate\nmutual information", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    axes.plot(
        _values(points, "input_information"),
        _values(points, "label_information"),
        color=_GREY,
        lw=0.8,
        zorder=1,
    )
    drawn = axes.scatter(
        _values(points, "input_information"),
        _values(points, "label_information"),
        c=_values(points, "epoch"),
        cmap="viridis",
        zorder=2,
    )
    axes.scatter(
        _values(chosen, "input_information"),
        _values(chosen, "label_information"),
        s=190,
        facecolors="none",
        edgecolors=_ORANGE,
        linewidths=2,
        zorder=3,
        label="chosen",
    )
    axes.errorbar(
        _values(points, "input_information"),
        _values(points, "label_information"),
        xerr=[candidate.input_error or 0.0 for candidate in points],
        yerr=[candidate.label_error or 0.0 for candidate in points],
        fmt="none",
        ecolor=_GREY,
        elinewidth=0.8,
        zorder=1,
    )
    if joint:
        axes.plot(
            [step.input_information for step in joint],
            [step.label_information for step in joint],
            "--D",
            color=_ORANGE,
            ms=5,
            lw=1,
            zorder=3,
            label="the set as it grows",
        )
        for number, step in enumerate(joint, start=1):
            axes.annotate(
                str(number), (step.input_information, step.label_information), (5, -10), textcoords="offset points"
            )
    axes.margins(0.08)
    axes.legend(loc="best", markerscale=0.5)
    figure.colorbar(drawn, ax=axes, label="epoch", ticks=MaxNLocator(integer=True))


def _draw_course(axes: Axes, usable: Sequence[Candidate], chosen: Sequence[Candidate], selection: Selection) -> None:
    share = _SHARES.get(str(selection.settings.get("normalisation")), "normalised")
    axes.set(title=f"Over training, chosen by rule '{selection.rule}'", xlabel="epoch", ylabel=f"{share}; accuracy")
    lines = (
        ("input_term", "I(X;F), normalised", _BLUE, "-"),
        ("label_term", "I(Y;F), normalised", _GREEN, "-"),
        ("accuracy", "accuracy", _GREY, "--"),
        ("student_accuracy", "accuracy of the proxy's student", _ORANGE, ":"),
    )
    for name, label, colour, style in lines:
        known = [candidate for candidate in usable if getattr(candidate, name) is not None]
        if known:
            axes.plot(_values(known, "epoch"), _values(known, name), style, color=colour, marker=".", label=label)
    for index, candidate in enumerate(chosen):
        axes.axvline(candidate.epoch, color=_ORANGE, lw=2, alpha=0.6, zorder=0, label="" if index else "chosen")
    axes.set_xlim(min(_values(usable, "epoch")) - 0.5, max(_values(usable, "epoch")) + 0.5)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _values(candidates: Sequence[Candidate], name: str) -> list[float]:
    return [float(getattr(candidate, name)) for candidate in candidates]


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
