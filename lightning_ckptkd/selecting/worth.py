"""What a choice is worth: how much held-out information the last snapshot lacks against the chosen ones, in words.

The information is I(Y;F), what a snapshot tells of labels that it was not trained on, in nats. Differences are between
snapshots on the same probe samples, with the jackknife's error of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_ckptkd.information.uncertainty import jackknife_error, student_quantile
from lightning_ckptkd.selecting.rules import HeldOut, Rule
from lightning_ckptkd.selecting.score import Score, Term, replicates_of, values_of
from lightning_ckptkd.snapshots import Candidate, Worth

LEAST_NATS = 0.02  # a loss below it is too little to matter, however sure it is
COARSE_NATS = 0.05  # a probe by which such a loss would not be seen can't say that there is none
LEAST_SAMPLES = 100  # of a probe: below it, a jackknife of 20 groups has less than five samples in each
_DOUBT = 0.025  # that any of all snapshots differs from the last one by chance alone, on one side


@dataclass(frozen=True)
class _Left:
    """A snapshot that is known on a part of the samples.

    Attributes:
        before: How many of the snapshots of the course come before it in training.
        term: What it tells, on that part.
        others: What the snapshots of the course tell on the same part, in their order; missing where that is not known.
    """

    before: int
    term: Term
    others: Mapping[int, Term]

    def equals(self, place: int, most: float, least: float) -> bool:
        """Whether it may be equal to the snapshot of that place."""
        other = self.others.get(place)
        if other is None:
            return True
        pair = replicates_of([other, self.term])
        error = float(jackknife_error(pair[:, 0] - pair[:, 1]))
        return abs(other.value - self.term.value) <= max(most * error, least)


@dataclass(frozen=True)
class _Course:
    """Held-out information over training.

    Attributes:
        names: Of the snapshots, in words.
        values: Shape (S,).
        replicates: Without each group of samples in turn, shape (G, S).
        chosen: Places of the chosen ones.
        soup: What their soup tells, where one teaches.
        most: Standard errors up to which a difference may be chance; more where there are more snapshots to differ.
        left: Those that left a race, and are no part of the above.
    """

    names: Sequence[str]
    values: Tensor
    replicates: Tensor
    chosen: Sequence[int]
    soup: Term | None
    most: float
    left: Sequence[_Left] = ()

    def lacks(self) -> tuple[float, float]:
        """What the last snapshot lacks against the soup or the mean of the chosen ones, and its standard error."""
        if self.soup is not None:
            pair = replicates_of([self.soup])[:, 0] - self.replicates[:, -1]
            return self.soup.value - float(self.values[-1]), float(jackknife_error(pair))
        chosen = list(self.chosen)
        return (
            float(self.values[chosen].mean() - self.values[-1]),
            float(jackknife_error(self.replicates[:, chosen].mean(1) - self.replicates[:, -1])),
        )

    @property
    def taught_by(self) -> str:
        """The chosen ones, in words."""
        return "the chosen" if self.soup is None else "the soup"

    def equal(self, place: int, least: float = 0.0) -> list[bool]:
        """Which snapshots are equal to that one within their errors, or differ by less than so many nats."""
        differences = (self.values - self.values[place]).abs()
        errors = jackknife_error(self.replicates - self.replicates[:, [place]])
        return [bool(equal) for equal in differences <= (self.most * errors).clamp_min(least)]

    def level_since(self, least: float = 0.0) -> int:
        """The place from which on all snapshots are equal to the last one."""
        equal = self.equal(len(self.names) - 1, least)
        return 1 + max((place for place, same in enumerate(equal) if not same), default=-1)


def worth_of(
    scores: Sequence[Score],
    chosen: Sequence[str],
    rule: Rule,
    held_out: HeldOut | None,
    size: int,
    parts: Mapping[int, Mapping[str, Score]] | None = None,
    soup: Term | None = None,
) -> Worth:
    """Whether a choice matters, in one sentence.

    It does where the last snapshot lacks ``LEAST_NATS`` or more, and more than chance would give the largest of as many
    differences as there are snapshots. It can't be said where no information was measured, the probe is smaller than
    ``LEAST_SAMPLES``, or its errors are such that a loss of ``COARSE_NATS`` would not be seen.

    Args:
        scores: Of every snapshot, in the order of training.
        chosen: Names of the chosen files, of a soup those of its members.
        rule: That chose.
        held_out: What of its terms says how much a snapshot tells of the labels; None: none does.
        size: Number of probe samples.
        parts: Where there was a race: by number of samples, the scores by file on that part.
        soup: Of a soup that teaches, what it tells itself.
    """
    usable = [score for score in scores if score.ranks]
    everybody = [score for score in scores if score.candidate.excluded is None]
    places = [place for place, score in enumerate(usable) if score.candidate.file in chosen]
    if held_out is None or not places or any(held_out.term not in score.terms for score in usable):
        return _unknown(
            f"rule {rule.name!r} does not measure what snapshots tell of held-out labels ('mi' and 'loss' do)"
        )
    terms = [score.terms[held_out.term] for score in usable]
    name = _namer([score.candidate for score in everybody])
    course = _Course(
        [name(score.candidate) for score in usable],
        values_of(terms),
        replicates_of(terms),
        places,
        soup,
        student_quantile(1 - _DOUBT / len(everybody), len(terms[0].replicates) - 1),
        _left(everybody, held_out.term, parts or {}),
    )
    last = "the last snapshot" if usable[-1] is scores[-1] else f"the last usable snapshot ({course.names[-1]})"
    if held_out.unit != "nats":
        return _in_other_units(course, rule, held_out, last)
    if size < LEAST_SAMPLES:
        return _unknown(f"a probe of {size} samples is too small, {LEAST_SAMPLES} or more are needed")
    return _in_nats(course, last, size)


def _left(everybody: Sequence[Score], term: str, parts: Mapping[int, Mapping[str, Score]]) -> list[_Left]:
    found: list[_Left] = []
    ranked = [score.candidate.file for score in everybody if score.ranks]
    before = 0
    for score in everybody:
        if score.ranks:
            before += 1
            continue
        part = parts.get(score.candidate.scored_on or 0, {})
        others = {place: part[file].terms for place, file in enumerate(ranked) if file in part}
        known = {place: terms[term] for place, terms in others.items() if term in terms}
        found.append(_Left(before, score.terms[term], known))
    return found


def _in_nats(course: _Course, last: str, size: int) -> Worth:
    lacks, error = course.lacks()
    shown = f"{_number(lacks, error)} nats"
    sure = lacks > course.most * error
    many = f" ({lacks / error:.0f} standard errors)" if error > 0 else ""
    if sure and lacks >= LEAST_NATS:
        best = int(course.values.argmax())
        until = max(place for place, equal in enumerate(course.equal(best, LEAST_NATS)) if equal)
        later = any(one.before > until and one.equals(best, course.most, LEAST_NATS) for one in course.left)
        known = " at the earliest" if later else ""
        fallen = f"over-fitted after {course.names[until]}{known}: " if until < len(course.names) - 1 else ""
        return Worth(lacks, error, True, f"{fallen}{last} lacks {shown}{many} of {course.taught_by}")
    if -lacks > max(course.most * error, LEAST_NATS):
        return Worth(
            lacks, error, False, f"nothing gained by the choice: {last} has {_number(-lacks, error)} nats more"
        )
    if not sure and course.most * error > COARSE_NATS:
        enough = 100 * math.ceil(size * (course.most * error / COARSE_NATS) ** 2 / 100)
        how = f"lacks {shown} of" if lacks >= 0 else f"has {_number(-lacks, error)} nats more than"
        return Worth(
            lacks,
            error,
            None,
            f"it can't be said whether the choice matters: {last} {how} {course.taught_by}, and on {size} "
            f"probe samples a loss of {COARSE_NATS} nats would not be seen; about {enough} would show it",
        )
    for least, within in ((0.0, "their errors"), (LEAST_NATS, f"{LEAST_NATS} nats")):
        since = course.level_since(least)
        if since <= min(course.chosen) and since < len(course.names) - 1:
            among = (
                " that were scored on all samples"
                if any(one.before > since or not since for one in course.left)
                else ""
            )
            words = f"all snapshots{among}" if since == 0 else f"all snapshots{among} from {course.names[since]} on"
            return Worth(lacks, error, False, f"nothing to choose: {words} are equal within {within}")
    if course.chosen == [len(course.names) - 1]:
        return Worth(lacks, error, False, f"nothing gained by the choice: {last} is what was chosen")
    why = ", too little to matter" if sure else ", which is within errors"
    return Worth(
        lacks, error, False, f"nothing to choose: {last} lacks {shown}{many * sure} of {course.taught_by}{why}"
    )


def _in_other_units(course: _Course, rule: Rule, held_out: HeldOut, last: str) -> Worth:
    lacks, error = (held_out.scale * part for part in course.lacks())
    return _unknown(
        f"{last} lacks {_number(lacks, error)} {held_out.unit} of {course.taught_by}, and rule {rule.name!r} does not "
        "measure nats: rule 'mi' does"
    )


def _unknown(why: str) -> Worth:
    return Worth(None, None, None, f"it can't be said whether the choice matters: {why}")


def _number(value: float, error: float) -> str:
    digits = min(6, max(2, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _namer(candidates: Sequence[Candidate]) -> Callable[[Candidate], str]:
    """What snapshots are called: by epoch, or by step where several are of one epoch."""
    if len({candidate.epoch for candidate in candidates}) == len(candidates):
        return lambda candidate: f"epoch {candidate.epoch}"
    return lambda candidate: f"step {candidate.global_step}"
