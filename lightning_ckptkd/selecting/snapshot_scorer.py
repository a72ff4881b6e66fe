"""Scoring one snapshot after another on the probe set, and trying a module on a few samples first."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_ckptkd.batches import check_labels
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.features import Features, Layers, extract_features, find_layers
from lightning_ckptkd.information.label import head_information
from lightning_ckptkd.information.probe import Probe
from lightning_ckptkd.information.scoring import Scorer
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.weights import find_non_finite, load_into


def check_model(settings: SelectionSettings, module: nn.Module, samples: Probe, *, whole: bool) -> None:
    """Try on a few samples whether a module suits the settings, before it is trained for days.

    The module is handed back as it came.

    Args:
        settings: What will be asked of it.
        module: What will be harvested.
        samples: A few samples.
        whole: Whether ``module`` is all that is trained, rather than a part of it.

    Raises:
        ArgumentError: If the layer, the logits or the labels are not as the settings need them.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with borrowed(module, device):
        module.eval()
        layers = _find_layers(settings, module, samples.inputs, whole=whole)
        features = _extract(settings, module, samples.inputs, layers)
    if settings.needs_logits:
        _check_logits(settings, features, samples)


class SnapshotScorer:
    """Turns one snapshot after another into a candidate, all by the same layers, folds and seeds."""

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
        self._scorer: Scorer | None = None
        if settings.rule == "mi":
            self._scorer = Scorer(
                probe,
                input_estimator=settings.input_estimator,
                label_estimator=settings.label_estimator,
                decoder_steps=settings.decoder_steps,
                seed=settings.seed,
                device=device,
            )

    def score(self, snapshot: Snapshot) -> Candidate:
        """Load one snapshot into the module and score it; excluded where something is not finite."""
        settings, module, probe = self._settings, self._module, self._probe
        weights = self._store.load(snapshot)
        candidate = _as_candidate(snapshot, find_non_finite(weights))
        if candidate.excluded is not None:
            return candidate
        load_into(module, weights, snapshot.file, argument="model")
        module.eval()
        if self._layers is None:
            whole = self._store.manifest.source.get("submodule") is None
            self._layers = _find_layers(settings, module, probe.inputs[:2], whole=whole)
        features = _extract(settings, module, probe.inputs, self._layers)
        parts = [part for part in (features.pooled, features.spatial, features.logits) if part is not None]
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            return replace(candidate, excluded="its features or logits on the probe set are not finite")
        accuracy = None
        if settings.needs_logits:
            _check_logits(settings, features, probe)
        if features.logits is not None and int(probe.labels.max()) < features.logits.shape[1]:
            accuracy = head_information(features.logits, probe.labels).accuracy
        if self._scorer is None:
            return replace(candidate, accuracy=accuracy, score=accuracy)
        information = self._scorer.score(features)
        return replace(
            candidate,
            accuracy=accuracy,
            input_information=information.input_information,
            label_information=information.label_information,
        )


def check_snapshot(store: SnapshotStore, snapshot: Snapshot) -> Candidate:
    """A candidate for rules that do not run the snapshots: read, verified, excluded if it is not finite."""
    return _as_candidate(snapshot, find_non_finite(store.load(snapshot)))


def _check_logits(settings: SelectionSettings, features: Features, samples: Probe) -> None:
    """Check that there are logits, and that the labels index them.

    Raises:
        ArgumentError: If not.
    """
    if features.logits is None:
        what = f"rule={settings.rule!r}" if settings.rule != "mi" else "label_estimator='head'"
        raise ArgumentError(
            f"{what} needs the teacher's logits, and the harvested module gives none. Harvest the whole classifier, "
            "say with logits_key where its output holds them, or use rule='mi' with label_estimator='logistic'."
        )
    check_labels(samples.labels, features.logits.shape[1])


def _find_layers(settings: SelectionSettings, module: nn.Module, inputs: Tensor, *, whole: bool) -> Layers:
    parameter = next(iter(module.parameters()), torch.empty(0))
    inputs = inputs.to(parameter.device)
    if inputs.is_floating_point():
        inputs = inputs.to(parameter.dtype)
    return find_layers(module, inputs, settings.layer, need_spatial=settings.needs_spatial, whole=whole)


def _extract(settings: SelectionSettings, module: nn.Module, inputs: Tensor, layers: Layers) -> Features:
    return extract_features(
        module,
        inputs,
        layers,
        batch_size=settings.batch_size,
        logits_key=settings.logits_key,
        need_logits=settings.needs_logits,
    )


def _as_candidate(snapshot: Snapshot, non_finite: str | None) -> Candidate:
    reason = None if non_finite is None else f"its weights hold NaN or infinity in {non_finite!r}"
    return Candidate(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step, excluded=reason)
