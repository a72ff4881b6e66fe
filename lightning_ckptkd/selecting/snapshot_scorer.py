"""Scoring one snapshot after another on the probe set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.information.temperature import fitted_temperature
from lightning_ckptkd.selecting.features import Features, extract_features, find_unusable
from lightning_ckptkd.selecting.items import Item
from lightning_ckptkd.selecting.looking import look, tell_of_missing_classes
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import Scorer, ScoringRule
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate
from lightning_ckptkd.snapshots.weights import find_non_finite, load_into

Prepare = Callable[[nn.Module], None]


@dataclass(frozen=True)
class HeldOutTerm:
    """What a network tells of held-out labels.

    Attributes:
        term: By the rule's own measure; None where features or logits are not finite, or the same for each sample.
        temperature: Fitted to its logits; None where it gives no scores of classes.
    """

    term: Term | None
    temperature: float | None


class SnapshotScorer:
    """Turns one snapshot after another into a score, all by the same layers, rows, folds and seeds.

    Args:
        settings: How to score.
        rule: Theirs.
        module: What snapshots are loaded into; on ``device``.
        probe: The samples.
        device: Where it runs.
        whole: Whether the module is all that was trained, rather than a part of it.
        need_logits: Whether the module must give logits, whatever the rule says.

    Attributes:
        rows: The samples, laid out.
        scorer: The rule, prepared.
    """

    def __init__(
        self,
        settings: SelectionSettings,
        rule: ScoringRule,
        module: nn.Module,
        probe: Probe,
        device: torch.device | str,
        *,
        whole: bool,
        need_logits: bool = False,
    ) -> None:
        self._settings, self._rule, self._module = settings, rule, module
        rule.check(probe)
        self._reading, _ = look(settings, rule, module, probe, whole=whole, need_logits=need_logits)
        task, num_classes = self._reading.task, self._reading.num_classes
        self.rows = ProbeRows.of(probe, task, num_classes, settings.batch_size, settings.seed)
        rule.check_rows(self.rows, joint=settings.joint)
        self.scorer = rule.prepare(self.rows, device)
        if rule.needs(joint=settings.joint).logits:
            tell_of_missing_classes(self.rows)

    def score(self, item: Item) -> Score:
        """Load one snapshot into the module and score it; excluded where something is not finite or constant."""
        weights = item.load()
        candidate = item.candidate(excluded_by(weights))
        if candidate.excluded is not None:
            return Score(candidate)
        return self.measure(candidate, self.run(weights, item.snapshot.file, self.rows))

    def measure(
        self, candidate: Candidate, features: Features, rows: ProbeRows | None = None, scorer: Scorer | None = None
    ) -> Score:
        """Score what a snapshot made of the samples, or of a part of them.

        Args:
            candidate: What is known of it.
            features: What it made of them.
            rows: The part; None for all.
            scorer: The rule, prepared for the part.
        """
        rows, scorer = self.rows if rows is None else rows, self.scorer if scorer is None else scorer
        if reason := find_unusable(features):
            return Score(replace(candidate, excluded=reason))
        if features.hits is not None:
            candidate = replace(candidate, accuracy=rows.share(features.hits).value)
        candidate = replace(candidate, temperature=_temperature(features, rows))
        terms = scorer.score(features)
        numbers = [number for term in terms.values() for number in (term.value, *term.replicates)]
        if not all(map(math.isfinite, numbers)):
            return Score(replace(candidate, excluded="its score on the probe set is not finite"))
        return Score(candidate, terms)

    def held_out(self, weights: Mapping[str, Tensor], file: str, prepare: Prepare | None = None) -> HeldOutTerm:
        """What weights that are no snapshot's tell of held-out labels.

        Args:
            weights: Of the module.
            file: What they are, for messages.
            prepare: Is given the module with the weights in it, before it runs.
        """
        name, scorer = self._rule.soup_term, self.scorer
        assert name is not None, "the settings have checked it"
        load_into(self._module, weights, file, argument="model")
        self._module.eval()
        if prepare is not None:
            prepare(self._module)
        features = extract_features(self._module, self.rows, self._reading.layers, self._settings.logits_key)
        if find_unusable(features):
            return HeldOutTerm(None, None)
        measure = getattr(scorer, "held_out", None)  # which spares the other terms
        term = scorer.score(features)[name] if measure is None else measure(features)
        finite = all(map(math.isfinite, (term.value, *term.replicates)))
        return HeldOutTerm(term if finite else None, _temperature(features, self.rows))

    def features(self, item: Item) -> Features:
        """What a snapshot that was scored makes of the probe samples."""
        return self.run(item.load(), item.snapshot.file, self.rows)

    def run(self, weights: Mapping[str, Tensor], file: str, rows: ProbeRows) -> Features:
        """What weights make of some samples.

        Args:
            weights: Of the module.
            file: Theirs, for messages.
            rows: The samples, laid out.
        """
        load_into(self._module, weights, file, argument="model")
        self._module.eval()
        return extract_features(self._module, rows, self._reading.layers, self._settings.logits_key)


def _temperature(features: Features, rows: ProbeRows) -> float | None:
    if features.logits is None or not rows.task.classes:
        return None
    return fitted_temperature(features.logits, rows.targets)


def check_snapshot(item: Item) -> Score:
    """A snapshot for rules that do not run it: read, verified, excluded if it is not finite."""
    return Score(item.candidate(excluded_by(item.load())))


def excluded_by(weights: Mapping[str, Any]) -> str | None:
    """Why weights can't be chosen; None where they can."""
    name = find_non_finite(weights)
    return None if name is None else f"its weights hold NaN or infinity in {name!r}"
