"""A choice as a picture: what was scored and, over training, how it went; the chosen snapshots marked."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_ckptkd.selecting.rules import Column, Words
from lightning_ckptkd.snapshots.selection import Candidate, JointChoice, Selection, Worth
from lightning_ckptkd.snapshots.store import SnapshotStore

PICTURE_NAME = "selection.png"
_LINE = 120  # characters of the picture's width
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#666666"  # for colour-blind readers too


def draw_selection(selection: Selection, words: Words, store: SnapshotStore) -> None:
    """Write ``selection.png``: the plane of two numbers or the score, and terms and accuracy over epochs.

    Args:
        selection: The choice.
        words: What its rule calls its numbers.
        store: The harvest.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    usable = [candidate for candidate in selection.candidates if candidate.excluded is None]
    chosen = [candidate for candidate in usable if candidate.file in selection.taught_by]
    if len(words.columns) >= 2 and _with(usable, words.columns[0].field):
        ranked = [candidate for candidate in usable if candidate.scored_on is None]
        _draw_plane(figure, left, ranked, chosen, words.columns[0], words.columns[1], selection.joint)
        if len(ranked) < len(usable):
            left.set_title(f"Information plane, without {len(usable) - len(ranked)} that left the race")
    elif _with(usable, "score"):
        _draw_score(left, usable, chosen, words)
    else:
        left.text(0.5, 0.5, words.nothing, ha="center", transform=left.transAxes)
        left.set(xticks=[], yticks=[])
    _draw_course(right, usable, chosen, words, selection.rule)
    if selection.worth is not None:
        figure.suptitle(textwrap.fill(as_sentence(selection.worth), _LINE), fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    store.folder.write(PICTURE_NAME, [buffer.getvalue()], store.manifest.tag)


def as_sentence(worth: Worth) -> str:
    """What a choice is worth, as a sentence stands in a text."""
    return worth.sentence[:1].upper() + worth.sentence[1:] + "."


def _draw_plane(
    figure: Figure,
    axes: Axes,
    points: Sequence[Candidate],
    chosen: Sequence[Candidate],
    x: Column,
    y: Column,
    joint: Sequence[JointChoice],
) -> None:
    xs, ys = _values(points, x.field), _values(points, y.field)
    axes.set(title="Information plane", xlabel=_in_brackets(x.header), ylabel=_in_brackets(y.header))
    axes.plot(xs, ys, color=_GREY, lw=0.8, zorder=1)
    drawn = axes.scatter(xs, ys, c=_values(points, "epoch"), cmap="viridis", zorder=2)
    axes.scatter(
        _values(chosen, x.field),
        _values(chosen, y.field),
        s=190,
        facecolors="none",
        edgecolors=_ORANGE,
        linewidths=2,
        zorder=3,
        label="chosen",
    )
    dx, dy = _values(points, x.error), _values(points, y.error)
    axes.errorbar(xs, ys, xerr=dx, yerr=dy, fmt="none", ecolor=_GREY, elinewidth=0.8, zorder=1)
    if joint:
        _draw_joint(axes, joint)
    axes.margins(0.08)
    axes.legend(loc="best", markerscale=0.5)
    figure.colorbar(drawn, ax=axes, label="epoch", ticks=MaxNLocator(integer=True))


def _draw_joint(axes: Axes, joint: Sequence[JointChoice]) -> None:
    xs, ys = [step.input_information for step in joint], [step.label_information for step in joint]
    axes.plot(xs, ys, "--D", color=_ORANGE, ms=5, lw=1, zorder=3, label="the set as it grows")
    for number, place in enumerate(zip(xs, ys, strict=True), start=1):
        axes.annotate(str(number), place, (5, -10), textcoords="offset points")


def _draw_score(axes: Axes, points: Sequence[Candidate], chosen: Sequence[Candidate], words: Words) -> None:
    axes.set(title="Score", xlabel="epoch", ylabel=_in_brackets(words.score))
    epochs, scores = _values(points, "epoch"), _values(points, "score")
    axes.errorbar(epochs, scores, yerr=_values(points, "score_error"), color=_BLUE, marker=".", ecolor=_GREY, lw=1)
    _draw_left(axes, points, "score", _BLUE, labelled=True)
    axes.scatter(
        _values(chosen, "epoch"),
        _values(chosen, "score"),
        s=190,
        facecolors="none",
        edgecolors=_ORANGE,
        linewidths=2,
        zorder=3,
        label="chosen",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", markerscale=0.5)


def _draw_course(axes: Axes, usable: Sequence[Candidate], chosen: Sequence[Candidate], words: Words, rule: str) -> None:
    axes.set(title=f"Over training, chosen by rule '{rule}'", xlabel="epoch")
    axes.set_ylabel(f"{words.axis}; accuracy" if words.axis else "accuracy")
    colours = (_BLUE, _GREEN)
    lines = [(name, label, colours[place % 2], "-") for place, (name, label) in enumerate(words.lines)]
    lines += [
        ("accuracy", "accuracy", _GREY, "--"),
        ("student_accuracy", "accuracy of the proxy's student", _ORANGE, ":"),
    ]
    for name, label, colour, style in lines:
        known = _with(usable, name)
        if known:
            axes.plot(_values(known, "epoch"), _values(known, name), style, color=colour, marker=".", label=label)
            _draw_left(axes, known, name, colour, labelled=name == "accuracy")
    for index, candidate in enumerate(chosen):
        axes.axvline(candidate.epoch, color=_ORANGE, lw=2, alpha=0.6, zorder=0, label="" if index else "chosen")
    axes.set_xlim(min(_values(usable, "epoch")) - 0.5, max(_values(usable, "epoch")) + 0.5)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _draw_left(axes: Axes, points: Sequence[Candidate], name: str, colour: str, *, labelled: bool) -> None:
    """Open circles for what is known on a part of the samples alone."""
    left = [candidate for candidate in points if candidate.scored_on is not None]
    if left:
        label = "left the race" if labelled else ""
        xs, ys = _values(left, "epoch"), _values(left, name)
        axes.plot(xs, ys, "o", mfc="white", mec=colour, ms=5, zorder=3, label=label)


def _with(candidates: Sequence[Candidate], name: str) -> list[Candidate]:
    return [candidate for candidate in candidates if getattr(candidate, name) is not None]


def _values(candidates: Sequence[Candidate], name: str) -> list[float]:
    """The numbers of that name; 0 for an error that there is none of."""
    return [float(getattr(candidate, name, 0.0) or 0.0) for candidate in candidates]


def _in_brackets(header: str) -> str:
    """A column's header as an axis is labelled: its unit, nats, in brackets."""
    name, found, _ = header.partition(" nats")
    return f"{name} (nats)" if found else header
