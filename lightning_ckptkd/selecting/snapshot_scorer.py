"""Scoring one snapshot after another on the probe set, and trying a module on a few samples first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.cmi import cmi_parts
from lightning_ckptkd.information.inputs import within_classes
from lightning_ckptkd.information.joint import JointInformation, JointStep, grow_set, reduce_features
from lightning_ckptkd.information.label import accuracy
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.features import (
    Features,
    Layers,
    choose_feature,
    extract_features,
    find_layers,
    find_unusable,
)
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.scoring import Scorer, Term, num_groups
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.snapshots import Candidate, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.weights import find_non_finite, load_into
from lightning_ckptkd.tasks.legacy import check_labels

_LISTED = 10  # classes that are named in a message


def check_model(
    settings: SelectionSettings,
    module: nn.Module,
    samples: Probe,
    proxy: StudentProxy | None = None,
    *,
    whole: bool,
) -> None:
    """Try on a few samples whether a module suits the settings, before it is trained for days.

    The module is handed back as it came.

    Args:
        settings: What will be asked of it.
        module: What will be harvested.
        samples: A few samples.
        proxy: A student that will be asked for logits too.
        whole: Whether ``module`` is all that is trained, rather than a part of it.

    Raises:
        ArgumentError: If the layer, the logits or the labels are not as the settings need them.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with borrowed(module, device):
        module.eval()
        layers = _find_layers(settings, module, samples.inputs, whole=whole)
        features = _extract(settings, module, samples.inputs, layers, need_logits=proxy is not None)
    if settings.needs_logits or proxy is not None:
        _check_logits(settings, features, samples)
    if proxy is not None and features.logits is not None:
        proxy.check_student(samples.inputs, features.logits)


class SnapshotScorer:
    """Turns one snapshot after another into a score, all by the same layers, folds and seeds.

    Attributes:
        input_entropy: The most that I(X;F) could be by the estimator, in nats.
    """

    def __init__(
        self,
        store: SnapshotStore,
        settings: SelectionSettings,
        module: nn.Module,
        probe: Probe,
        device: torch.device | str,
    ) -> None:
        self._store, self._settings, self._module, self._probe = store, settings, module, probe
        self._layers: Layers | None = None
        self._told = False
        self._scorer = Scorer(probe, settings.estimators, device) if settings.rule == "mi" else None
        self.input_entropy = self._scorer.input_entropy if self._scorer is not None else 0.0

    def score(self, snapshot: Snapshot) -> Score:
        """Load one snapshot into the module and score it; excluded where something is not finite or constant."""
        settings, labels = self._settings, self._probe.labels
        weights = self._store.load(snapshot)
        candidate = _as_candidate(snapshot, find_non_finite(weights))
        if candidate.excluded is not None:
            return Score(candidate)
        features = self._run(snapshot, weights)
        if reason := find_unusable(features):
            return Score(replace(candidate, excluded=reason))
        if settings.needs_logits:
            _check_logits(settings, features, self._probe)
            self._tell_of_missing_classes(features)
        if features.logits is not None and int(labels.max()) < features.logits.shape[1]:
            candidate = replace(candidate, accuracy=accuracy(features.logits, labels))
        if self._scorer is None:
            return self._score_logits(candidate, features)
        features = choose_feature(features, settings.feature, settings.temperature)
        x, y = self._scorer.score_input(features), self._scorer.score_label(features)
        candidate = replace(
            candidate,
            input_information=x.nats,
            input_error=x.error,
            label_information=y.nats,
            label_error=y.error,
        )
        return Score(candidate, x.replicates, y.replicates)

    def member(self, snapshot: Snapshot) -> tuple[Tensor, Tensor | None]:
        """What a joint choice needs of a snapshot that was scored: reduced features (N, D) and logits (N, K)."""
        settings = self._settings
        features = self._run(snapshot, self._store.load(snapshot))
        features = choose_feature(features, settings.feature, settings.temperature)
        f = within_classes(features.pooled, self._probe.labels) if settings.given_label else features.pooled
        return reduce_features(f), features.logits

    def grow(
        self, members: Sequence[tuple[Tensor, Tensor | None]], count: int | None, worth: tuple[float, float]
    ) -> list[JointStep]:
        """Make a joint choice among snapshots, of which the first is in it.

        Args:
            members: What :meth:`member` gives of each.
            count: How many; None goes on while one more tells something.
            worth: What a nat of I(X;F) and of I(Y;F) is worth.
        """
        assert self._scorer is not None
        features = [feature for feature, _ in members]
        logits = [logits for _, logits in members if logits is not None]
        joint = JointInformation(
            self._scorer.x,
            features,
            logits if len(logits) == len(members) else None,
            self._probe.labels,
            self._scorer.folds,
        )
        return grow_set(joint, 0, count, worth, self._settings.seed)

    def _run(self, snapshot: Snapshot, weights: Mapping[str, Tensor]) -> Features:
        settings, module, probe = self._settings, self._module, self._probe
        load_into(module, weights, snapshot.file, argument="model")
        module.eval()
        if self._layers is None:
            whole = self._store.manifest.source.get("submodule") is None
            self._layers = _find_layers(settings, module, probe.inputs[:2], whole=whole)
        return _extract(settings, module, probe.inputs, self._layers)

    def _tell_of_missing_classes(self, features: Features) -> None:
        assert features.logits is not None
        num_classes, present = features.logits.shape[1], set(self._probe.labels.tolist())
        missing = [str(label) for label in range(num_classes) if label not in present]
        if missing and not self._told:
            listed = ", ".join([*missing[:_LISTED], *(["…"] if len(missing) > _LISTED else [])])
            rank_zero_warn(
                f"The probe set has no sample of {len(missing)} of {num_classes} classes ({listed}), so snapshots are "
                "scored without them. Give a larger probe_size, or a probe= dataloader that has all classes."
            )
        self._told = True

    def _score_logits(self, candidate: Candidate, features: Features) -> Score:
        """By a rule that needs nothing but the logits."""
        assert features.logits is not None
        labels = self._probe.labels
        if self._settings.rule == "mcmi":
            values = cmi_parts(features.logits.double().softmax(1), labels)
        else:
            values = (features.logits.argmax(1) == labels).double()
        term = Term.of(values, self._settings.seed, num_groups(len(labels)))
        return Score(replace(candidate, score=term.nats, score_error=term.error), score_replicates=term.replicates)


def check_snapshot(store: SnapshotStore, snapshot: Snapshot) -> Score:
    """A candidate for rules that do not run the snapshots: read, verified, excluded if it is not finite."""
    return Score(_as_candidate(snapshot, find_non_finite(store.load(snapshot))))


def _check_logits(settings: SelectionSettings, features: Features, samples: Probe) -> None:
    """Check that there are logits, and that the labels index them.

    Raises:
        ArgumentError: If not.
    """
    if features.logits is None:
        what = "label_estimator='head'" if settings.label_estimator == "head" else "ensemble='greedy'"
        what = what if settings.needs_logits else "student_proxy"
        raise ArgumentError(
            f"{what} needs the teacher's logits, and the harvested module gives none. Harvest the whole classifier, "
            "say with logits_key where its output holds them, or use rule='mi' with feature='layer' and "
            "label_estimator='logistic'."
        )
    check_labels(samples.labels, features.logits.shape[1])


def _find_layers(settings: SelectionSettings, module: nn.Module, inputs: Tensor, *, whole: bool) -> Layers:
    parameter = next(iter(module.parameters()), torch.empty(0))
    inputs = inputs.to(parameter.device)
    if inputs.is_floating_point():
        inputs = inputs.to(parameter.dtype)
    return find_layers(
        module,
        inputs,
        settings.layer,
        need_spatial=settings.needs_spatial,
        need_layer=settings.needs_layer,
        whole=whole,
    )


def _extract(
    settings: SelectionSettings, module: nn.Module, inputs: Tensor, layers: Layers, *, need_logits: bool = False
) -> Features:
    return extract_features(
        module,
        inputs,
        layers,
        batch_size=settings.batch_size,
        logits_key=settings.logits_key,
        need_logits=settings.needs_logits or need_logits,
    )


def _as_candidate(snapshot: Snapshot, non_finite: str | None) -> Candidate:
    reason = None if non_finite is None else f"its weights hold NaN or infinity in {non_finite!r}"
    return Candidate(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step, excluded=reason)
