"""Telling whether checkpoints are of one training run, by what each of them says of itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

_VERSION = re.compile(r"-v(\d+)\.ckpt$")  # what Lightning puts behind a name that is taken
_COUNTED = re.compile(r"(?<![A-Za-z0-9])(epoch|step)=\d+|=-?\d+\.\d+")
_SHOWN = 8


@dataclass(frozen=True)
class Facts:
    """What one checkpoint says of where in which run it was saved.

    Attributes:
        name: The file's name.
        epoch: Lightning's ``current_epoch``.
        step: Lightning's ``global_step``.
        batches: Training batches since the run began; None where the file does not say.
        ended: Whether it was saved at the end of its epoch.
        shapes: Name and shape of each weight.
        signs: What is the same throughout a run unless it was resumed with another value: title to value.
        digest: Hash of the weights; empty where no other file has the same step.
    """

    name: str
    epoch: int
    step: int
    batches: int | None = None
    ended: bool = False
    shapes: frozenset[tuple[str, tuple[int, ...]]] = frozenset()
    signs: dict[str, str] = field(default_factory=dict)
    digest: str = ""


def contradiction(one: Facts, other: Facts) -> str | None:
    """Why two checkpoints can't be of one run; None if they can."""
    if one.shapes != other.shapes:
        return "their weights have other names or shapes"
    if one.step == other.step:
        return f"both are of step {one.step} and their weights differ" if one.digest != other.digest else None
    earlier, later = sorted((one, other), key=lambda facts: facts.step)
    if later.epoch < earlier.epoch:
        return f"steps {earlier.step} and {later.step} are of epochs {earlier.epoch} and {later.epoch}"
    if earlier.batches is not None and later.batches is not None and later.batches < earlier.batches:
        return f"steps {earlier.step} and {later.step} come after {earlier.batches} and {later.batches} batches"
    if one.ended and other.ended and one.epoch == other.epoch:
        return f"epoch {one.epoch} ends at step {earlier.step} and at step {later.step}"
    return None


def find_contradiction(files: Iterable[Facts]) -> tuple[Facts, Facts, str] | None:
    """The first two checkpoints that can't be of one run, and why; None if all can."""
    ordered = sorted(files, key=lambda facts: (facts.step, facts.name))
    at_ends = [facts for facts in ordered if facts.ended]
    for one, other in itertools.chain(itertools.pairwise(ordered), itertools.pairwise(at_ends)):
        reason = contradiction(one, other)
        if reason is not None:
            return one, other, reason
    return None


def find_difference(files: Sequence[Facts]) -> tuple[Facts, Facts, str] | None:
    """The first two checkpoints that differ in a sign, and its title; None if none do."""
    for other in files[1:]:
        for title, value in files[0].signs.items():
            if other.signs.get(title) != value:
                return files[0], other, title
    return None


def group(files: Sequence[Facts]) -> list[list[Facts]]:
    """Checkpoints by the run that they seem to be of: by signs and shapes, by their names, by what contradicts."""
    families: dict[object, list[list[Facts]]] = {}
    for facts in sorted(files, key=lambda facts: (facts.step, facts.name)):
        key = facts.shapes, tuple(sorted(facts.signs.items())), _COUNTED.sub(r"\1=*", facts.name)
        groups = families.setdefault(key, [])
        fitting = (members for members in groups if not any(contradiction(facts, member) for member in members))
        members = next(fitting, None)
        if members is None:
            groups.append([facts])
        else:
            members.append(facts)
    return [members for groups in families.values() for members in groups]


def describe_groups(files: Sequence[Facts]) -> str:
    """The groups, each with the ``files`` that takes it, and which files could be of more than one."""
    groups = group(files)
    names = [facts.name for facts in files]
    lines = []
    for number, members in enumerate(groups, start=1):
        own = [facts.name for facts in members]
        others = [other for other in groups if other is not members and _contradict(members, other)]
        unsure = [
            facts.name
            for facts in members
            if any(not _contradict([facts], other) and _same_signs(facts, other[0]) for other in others)
        ]
        line = f"Group {number}: {_shown(own)}; files={_pattern(own, names)!r} takes it."
        if unsure:
            line += f" {_shown(unsure)} could as well be of another: name the files one by one."
        lines.append(line)
    return " ".join(lines)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file is meant: by its name or a pattern, and by none of those that begin with ``!``."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    barred = [pattern[1:] for pattern in patterns if pattern.startswith("!")]

    def among(given: Sequence[str]) -> bool:
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in given)

    return among(wanted) and not among(barred)


def _contradict(files: Sequence[Facts], others: Sequence[Facts]) -> bool:
    return any(contradiction(one, other) for one in files for other in others)


def _same_signs(one: Facts, other: Facts) -> bool:
    return one.signs == other.signs and one.shapes == other.shapes


def _pattern(own: Sequence[str], names: Sequence[str]) -> str | list[str]:
    """A pattern that takes these of the names and no others; all of them by name, where none is found."""
    if len(own) == 1:
        return own[0]
    versions = {f"*-v{found[1]}.ckpt" for name in names if (found := _VERSION.search(name))}
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*own, strict=False))
    prefix = "".join(letters[0] for letters in alike)
    tried = [*([pattern] for pattern in sorted(versions)), [f"!{pattern}" for pattern in sorted(versions)]]
    for patterns in (*tried, [f"{prefix}*"]):
        if patterns and {name for name in names if matches(name, patterns)} == set(own):
            return patterns[0] if len(patterns) == 1 else patterns
    return list(own)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
