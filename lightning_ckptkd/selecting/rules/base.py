"""What a rule is: an object with options of its own that says what it needs, scores a snapshot, and orders them.

The simplest rule of your own is a :class:`.RowRule` (a number for each row of logits, whose mean is the score) or a
:class:`PositionRule` (an order of places in training). It goes to ``MISelector(rule=...)``, by class path from a
config or the command line. Keep each option of ``__init__`` as an attribute of its name.
"""

from __future__ import annotations

import hashlib
import inspect
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.information.racing import View
from lightning_ckptkd.information.ranking import DEFAULT_TIES, TIES
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.words import HeldOut, Words
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.snapshots import Candidate, JointChoice
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.tasks.base import Task


@dataclass(frozen=True)
class Needs:
    """What a rule wants of each snapshot.

    Attributes:
        logits: Whether it can't do without them.
        vectors: Whether it needs a vector of features for each sample, from a layer.
        feature_map: Whether it needs a feature map (N, C, H, W).
        layer: Name of the module that gives both; None finds it.
        what: What needs the logits, for a message.
        remedy: What to do where there are none, likewise.
    """

    logits: bool = True
    vectors: bool = False
    feature_map: bool = False
    layer: str | None = None
    what: str = "The rule"
    remedy: str = "use a rule that reads features alone, MI(label_estimator='logistic')"


@dataclass(frozen=True)
class Ranked:
    """Snapshots with what a rule makes of their scores.

    Attributes:
        candidates: With ``score`` and what else the rule knows.
        replicates: The scores without each group of samples in turn, shape (G, S), float64.
    """

    candidates: Sequence[Candidate]
    replicates: Tensor


class Scorer(Protocol):
    """A rule with all that is the same for each snapshot prepared once."""

    def score(self, features: Features) -> Mapping[str, Term]:
        """What is measured of one snapshot, by the rule's own names."""

    def rank(self, scores: Sequence[Score]) -> Ranked:
        """Scores of all usable snapshots, in the same order."""


class Racer(Scorer, Protocol):
    """A scorer of a part of the samples, whose scores foretell those of all."""

    def views(self, scores: Sequence[Score], sure: float) -> Sequence[View]:
        """What the scores may be; ``sure`` is the standard errors that are sure."""

    def known(self, score: Score) -> Candidate:
        """What the record says of a snapshot that is known on this part alone."""


class JointScorer(Scorer, Protocol):
    """A scorer that can choose a set by what its members tell together."""

    def pool(self, best: Sequence[Candidate], least: int) -> Sequence[Candidate]:
        """Which of the snapshots, the best first, a set may be made of; ``least`` of them at least."""

    def member(self, features: Features) -> Any:
        """What is needed of one snapshot of the pool; it must be possible to pickle."""

    def grow(
        self, scores: Sequence[Score], files: Sequence[str], members: Sequence[Any], count: int | str | None
    ) -> list[JointChoice]:
        """Make a set, the first of the pool in it.

        Args:
            scores: Of all usable snapshots.
            files: Of the pool.
            members: What :meth:`member` gave of each.
            count: How many; None goes on while one more tells something. ``auto``: the first of the pool, as many
                as tell what the best number of them tells.
        """


DEFAULT_NUMBER = 3  # of teachers
AUTO = "auto"  # as many teachers as the data say


class Rule:
    """How the snapshots of a harvest are put into an order.

    Attributes:
        num_teachers: How many are chosen where the user does not say. ``auto``, for a rule that can choose a set by
            what its members tell together, is as many as the data say, and ``DEFAULT_NUMBER`` where a task or a
            network does not let it.
    """

    num_teachers: ClassVar[int | str] = DEFAULT_NUMBER
    short_name: ClassVar[str] = ""  # of the package's own

    @property
    def name(self) -> str:
        """The short name; of a rule of your own, where the class is."""
        own: str = vars(type(self)).get("short_name", "")  # a subclass is another rule
        return own or f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def words(self) -> Words:
        """What table and picture call its numbers."""
        return Words()

    def options(self) -> dict[str, Any]:
        """Its options by name, as given.

        Raises:
            ArgumentError: If one is not kept as an attribute.
        """
        names = [
            name
            for name, parameter in inspect.signature(type(self).__init__).parameters.items()
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise ArgumentError(
                f"{type(self).__name__} takes {missing[0]} and keeps it under another name, so that the record of a "
                f"choice could not say what it was made with. Write self.{missing[0]} = {missing[0]} in __init__."
            )
        return {name: getattr(self, name) for name in names}

    def describe(self) -> dict[str, Any]:
        """Name and options, for the record."""
        described: dict[str, Any] = json_safe({"name": self.name, **self.options()})
        return described


class PositionRule(Rule, ABC):
    """A rule that looks at nothing but the snapshots' place in training."""

    @property
    @override
    def words(self) -> Words:
        return Words(nothing="this rule goes by position\nand scores nothing")

    @abstractmethod
    def order(self, steps: Tensor, count: int) -> Tensor:
        """Which snapshots are taken.

        Args:
            steps: Global step of each snapshot in the order of training, shape (S,), float64.
            count: How many, at most S.

        Returns:
            Indices, the best first, shape (count,).
        """


def check_ties(ties: object) -> None:
    """Refuse what says nothing of equal scores.

    Raises:
        ArgumentError: If so.
    """
    if ties not in TIES:
        raise ArgumentError(f"ties={ties!r} is unknown. Near names: {near_names(str(ties), TIES)}.")


class ScoringRule(Rule, ABC):
    """A rule that runs the snapshots on the probe set.

    Attributes:
        ties: Which of snapshots with equal scores comes first; see :func:`.information.ranking.rank_by_score`. A rule
            of your own may take it as an option or set it.
        soup_term: Name of the term that says how well a network itself foretells held-out labels, larger is better;
            None where none does, so that no soup can be judged by it.
    """

    ties: str = DEFAULT_TIES
    soup_term: ClassVar[str | None] = None

    @property
    def joint(self) -> bool:
        """Whether it can choose a set by what its members tell together; its scorer is a :class:`JointScorer` then."""
        return False

    def needs(self, *, joint: bool = False) -> Needs:
        """What it wants of each snapshot; ``joint`` if a set is chosen by what its members tell together."""
        return Needs(what=f"rule={self.name!r}")

    def held_out(self, task: Task) -> HeldOut | None:
        """Which of its terms says how much a snapshot tells of the labels of this task; None: none does."""
        return None

    def key(self) -> dict[str, Any]:
        """All that what it measures of a snapshot depends on: scores that were kept are taken for the same key only.

        Leave out options that matter only when scores are ranked. The code of a rule of your own is in it.
        """
        described = {name: value for name, value in self.describe().items() if name != "ties"}
        return {**described, "code": _code_of(type(self))}

    def check(self, probe: Probe) -> None:
        """Refuse inputs that can't be scored, before anything runs.

        Raises:
            ArgumentError: If so.
        """

    def memory(self, probe: Probe, num_samples: int) -> tuple[int, str]:
        """What it will hold beside the probe set, in bytes, and what that is, for a message.

        Args:
            probe: A few of the samples.
            num_samples: How many there will be.
        """
        return 0, ""

    def check_rows(self, rows: ProbeRows, *, joint: bool = False) -> None:
        """Refuse targets that can't be scored, as soon as the task is known.

        Args:
            rows: The probe set, or a few samples of it.
            joint: Whether a set is chosen by what its members tell together.

        Raises:
            ArgumentError: If so.
        """

    def race(self, rows: ProbeRows, device: torch.device | str) -> Racer | None:
        """Get ready to score a part of the samples, by which it shows who can't be among the best.

        Args:
            rows: The part.
            device: Where whatever is trained for it is trained.

        Returns:
            None where scores of a part do not foretell those of all, as for a rule of which nothing else is known.
        """
        return None

    @abstractmethod
    def prepare(self, rows: ProbeRows, device: torch.device | str) -> Scorer:
        """Get ready to score.

        Args:
            rows: The probe set.
            device: Where whatever is trained for it is trained.
        """


def code_of(part: object) -> str:
    """A hash of the file that a function's code, or that of an object's class, is in."""
    kind = part if inspect.isfunction(part) else type(part)
    try:
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):  # typed at a prompt: good for this very one only
        source = f"{_THIS_PROCESS} {kind!r} {id(kind)}"
    return hashlib.sha256(source.encode()).hexdigest()


def _code_of(kind: type[Rule]) -> str:
    """A hash of the files that a rule's code is in, so that scores by code that has changed since are not taken."""
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in (_PACKAGE, "abc", "builtins")]
    try:
        sources = [inspect.getsource(inspect.getmodule(base) or base) for base in own]
    except (OSError, TypeError):  # typed at a prompt: scores are good for this very class only
        sources = [f"{_THIS_PROCESS} {kind!r} {id(kind)}"]
    return hashlib.sha256("".join(sources).encode()).hexdigest() if own else ""


_PACKAGE = __name__.partition(".")[0]  # whose version is in the key, too
_THIS_PROCESS = secrets.token_hex()
