"""The record of a choice among snapshots: the file ``selection.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import Fields, shown
from lightning_ckptkd.snapshots.manifest import Snapshot
from lightning_ckptkd.snapshots.seal import is_sealed, sealed
from lightning_ckptkd.snapshots.store import SnapshotStore

SELECTION_NAME = "selection.json"
_FORMAT, _VERSION = "lightning_ckptkd.selection", 1


@dataclass(frozen=True)
class Candidate:
    """What is known of one snapshot when the choice is made.

    Attributes:
        file: Name of the snapshot's file.
        sha256: Its SHA-256.
        epoch: Lightning's ``current_epoch``, from 0.
        global_step: Optimiser steps taken.
        input_information: I(X;F) in nats; None where the rule does not need it.
        input_error: Its standard error over probe samples in nats; likewise.
        label_information: I(Y;F) in nats; likewise.
        label_error: Its standard error in nats; likewise.
        temperature: What its logits are divided by for the lowest cross-entropy on the probe set; above 1 where the
            snapshot is over-confident. None where it gives no scores of classes.
        accuracy: Share of the probe set that the snapshot itself gets right; None where it gives no logits.
        student_information: I(Y;S) in nats of the student S that a short proxy distillation gave; None where the
            snapshot was not tried.
        student_error: Its standard error in nats; likewise.
        student_accuracy: Share of the probe set that the student gets right; likewise.
        input_term: The normalised I(X;F).
        label_term: The normalised I(Y;F).
        score: What the rule ranks by, larger is better; None where the rule goes by position.
        score_error: Its standard error.
        rank: 1 for the best; None for a snapshot that is excluded, that left a race, or that a rule by position passes
            over.
        excluded: Why the snapshot can't be chosen; None if it can.
        scored_on: Of a snapshot that left a race early, how many of the probe samples it was scored on, of which its
            numbers are then; it has no rank. None where it is all that there are.
    """

    file: str
    sha256: str
    epoch: int
    global_step: int
    input_information: float | None = None
    input_error: float | None = None
    label_information: float | None = None
    label_error: float | None = None
    temperature: float | None = None
    accuracy: float | None = None
    student_information: float | None = None
    student_error: float | None = None
    student_accuracy: float | None = None
    input_term: float | None = None
    label_term: float | None = None
    score: float | None = None
    score_error: float | None = None
    rank: int | None = None
    excluded: str | None = None
    scored_on: int | None = None


@dataclass(frozen=True)
class JointChoice:
    """One step of a joint choice: the set after a snapshot joined it.

    Attributes:
        file: Name of the snapshot's file.
        input_information: I(X; F1..Fk) of the set in nats.
        label_information: I(Y;F) of the set's mean logits in nats.
        gain: What the snapshot added to the set's score; for the first one its score.
        gain_error: Standard error of the gain.
    """

    file: str
    input_information: float
    label_information: float
    gain: float
    gain_error: float


@dataclass(frozen=True)
class Worth:
    """What a choice is worth, as far as the probe set tells.

    Attributes:
        lacks_nats: What the last usable snapshot lacks of the held-out information I(Y;F) of the chosen ones, on their
            mean, in nats; below 0 where it has more; None where that was not measured.
        standard_error: Of that difference, in nats; likewise.
        matters: Whether choosing matters; None where it can't be said.
        sentence: The same in words.
    """

    lacks_nats: float | None
    standard_error: float | None
    matters: bool | None
    sentence: str


@dataclass(frozen=True)
class Selection:
    """A choice among the snapshots of one harvest.

    Attributes:
        run_id: The harvest's run.
        rule: The rule that chose.
        created: UTC, ISO 8601.
        settings: The settings and the seed that made it.
        probe: What the snapshots were scored on: samples, classes, label entropy in nats; empty if on nothing.
        candidates: Every snapshot in the order of training.
        chosen: Names of the chosen files, the best first.
        joint: The steps of a joint choice; empty where each snapshot was chosen by itself.
        proxy: Student, budget and cost in seconds of a proxy distillation; empty where there was none.
        worth: Whether the choice matters; None in a record of an earlier version.
        soup: Of a choice by ``ensemble="soup"``: whether a soup teaches (``taken``), its file and hash if so, its
            members, how it was made, what it and its best member tell of held-out labels, and why it was not taken if
            not; else empty.
    """

    run_id: str
    rule: str
    created: str
    settings: dict[str, Any]
    probe: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    chosen: tuple[str, ...] = ()
    joint: tuple[JointChoice, ...] = ()
    proxy: dict[str, Any] = field(default_factory=dict)
    worth: Worth | None = None
    soup: dict[str, Any] = field(default_factory=dict)

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Files of the snapshots whose weights teach: the chosen ones, of a soup its members."""
        if not self.soup.get("taken"):
            return self.chosen
        return tuple(str(member["file"]) for member in self.soup["members"])

    def write(self, store: SnapshotStore) -> None:
        """Write the choice into the harvest's folder, sealed: whole or not at all."""
        document = asdict(self)
        document["snapshots"] = document.pop("candidates")
        document = sealed({"format": _FORMAT, "version": _VERSION, **document})
        store.folder.write_json(SELECTION_NAME, document, store.manifest.tag)

    @classmethod
    def read(cls, store: SnapshotStore) -> Selection:
        """Read the choice of a harvest, trusting nothing in it.

        Raises:
            SnapshotError: If it is missing or wrong, was changed since it was written, belongs to another run, or
                names snapshots twice or that the manifest does not have.
        """
        where = str(store.folder / SELECTION_NAME)
        again = f"select again: `ckptkd select {store.folder}`."
        document = store.folder.read_json(SELECTION_NAME)
        fields = Fields(document, where)
        fields.header(_FORMAT, _VERSION)
        if not is_sealed(document):
            raise SnapshotError(
                f"{where} was changed since it was written, or was written before choices were sealed, so it is not "
                f"believed. To choose by hand give choice= epochs; else {again}"
            )
        selection = cls(
            run_id=fields.text("run_id"),
            rule=fields.text("rule"),
            created=fields.text("created"),
            settings=fields.plain("settings"),
            probe=fields.plain("probe"),
            candidates=tuple(read_candidate(item) for item in fields.objects("snapshots")),
            chosen=tuple(str(name) for name in fields.items("chosen")),
            joint=tuple(_read_joint(item) for item in fields.optional_objects("joint")),
            proxy=fields.optional_plain("proxy"),
            worth=_read_worth(fields.optional_object("worth")),
            soup=_read_soup(fields),
        )
        if selection.run_id != store.manifest.run_id:
            raise SnapshotError(
                f"{where} was made for the run {shown(selection.run_id)}, but the folder holds "
                f"{shown(store.manifest.run_id)}; {again}"
            )
        if not selection.chosen:
            raise SnapshotError(f"{where} chooses no snapshot; {again}")
        candidates = {candidate.file: _identity(candidate) for candidate in selection.candidates}
        if len(candidates) < len(selection.candidates) or len(set(selection.chosen)) < len(selection.chosen):
            raise SnapshotError(f"{where} names the same snapshot twice; {again}")
        known = {_identity(snapshot) for snapshot in store.snapshots}
        soups = {(soup.file, soup.sha256) for soup in store.soups}
        soup = selection.soup if selection.soup.get("taken") else {}
        for name in selection.chosen:
            is_soup = name == soup.get("file") and (name, soup["sha256"]) in soups
            if not is_soup and candidates.get(name) not in known:
                raise SnapshotError(
                    f"{where} chooses {shown(name)}, which the manifest does not have (or has with another hash, "
                    f"epoch or step); {again}"
                )
        return selection


def _identity(known: Candidate | Snapshot) -> tuple[str, str, int, int]:
    return known.file, known.sha256, known.epoch, known.global_step


def _read_worth(fields: Fields | None) -> Worth | None:
    if fields is None:
        return None
    return Worth(
        lacks_nats=fields.optional_number("lacks_nats"),
        standard_error=fields.optional_number("standard_error"),
        matters=fields.optional_flag("matters"),
        sentence=fields.text("sentence"),
    )


def _read_soup(fields: Fields) -> dict[str, Any]:
    """What is said of a soup; of one that teaches with all that is asked for later."""
    soup = fields.optional_object("soup")
    found = fields.optional_plain("soup")
    if soup is not None and found.get("taken"):
        for name in ("file", "sha256"):
            soup.text(name)
        for member in soup.objects("members"):
            member.text("file")
        soup.optional_number("temperature")
    return found


def _read_joint(fields: Fields) -> JointChoice:
    return JointChoice(
        file=fields.text("file"),
        input_information=fields.number("input_information"),
        label_information=fields.number("label_information"),
        gain=fields.number("gain"),
        gain_error=fields.number("gain_error"),
    )


def read_candidate(fields: Fields) -> Candidate:
    """A candidate from an untrusted JSON object.

    Raises:
        SnapshotError: If a field is wrong.
    """
    return Candidate(
        file=fields.text("file"),
        sha256=fields.text("sha256"),
        epoch=fields.natural("epoch"),
        global_step=fields.natural("global_step"),
        input_information=fields.optional_number("input_information"),
        input_error=fields.optional_number("input_error"),
        label_information=fields.optional_number("label_information"),
        label_error=fields.optional_number("label_error"),
        temperature=fields.optional_number("temperature"),
        accuracy=fields.optional_number("accuracy"),
        student_information=fields.optional_number("student_information"),
        student_error=fields.optional_number("student_error"),
        student_accuracy=fields.optional_number("student_accuracy"),
        input_term=fields.optional_number("input_term"),
        label_term=fields.optional_number("label_term"),
        score=fields.optional_number("score"),
        score_error=fields.optional_number("score_error"),
        rank=None if fields.optional_number("rank") is None else fields.natural("rank"),
        excluded=fields.optional_text("excluded"),
        scored_on=None if fields.optional_number("scored_on") is None else fields.natural("scored_on"),
    )
