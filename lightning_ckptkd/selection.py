"""Selecting: score every snapshot of a harvest on the probe set, spread over ranks, and choose by a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_ckptkd.batches import check_labels
from lightning_ckptkd.errors import ArgumentError, SelectionError
from lightning_ckptkd.information.features import Features, Layers, extract_features, find_layers
from lightning_ckptkd.information.label import head_information
from lightning_ckptkd.information.probe import Probe
from lightning_ckptkd.information.ranking import (
    NORMALISATIONS,
    POSITION_RULES,
    normalise,
    rank_by_position,
    rank_descending,
)
from lightning_ckptkd.information.scoring import INPUT_ESTIMATORS, LABEL_ESTIMATORS, Scorer, describe_probe
from lightning_ckptkd.ranks import current_rank, num_ranks, on_all_ranks
from lightning_ckptkd.snapshots import Candidate, Selection, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.weights import find_non_finite, load_into, near_names

RULES = ("mi", "accuracy", *POSITION_RULES)
_DEFAULT_TEACHERS = 3


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a choice besides the snapshots and the probe set; :class:`MISelector` explains each."""

    rule: str = "mi"
    num_teachers: int | None = None
    layer: str | None = None
    input_estimator: str = "gaussian"
    label_estimator: str = "head"
    input_weight: float = 1.0
    label_weight: float = 1.0
    normalisation: str = "max"
    decoder_steps: int = 300
    logits_key: str | int | None = None
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("rule", RULES),
            ("input_estimator", INPUT_ESTIMATORS),
            ("label_estimator", LABEL_ESTIMATORS),
            ("normalisation", NORMALISATIONS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(f"{name}={value!r} is unknown. Near names: {near_names(str(value), known)}.")
        for name in ("decoder_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {getattr(self, name)}.")
        if self.num_teachers is not None and self.num_teachers < 1:
            raise ArgumentError(f"num_teachers should be 1 or more, got {self.num_teachers}.")
        weights = self.input_weight, self.label_weight
        if min(weights) < 0 or max(weights) == 0:
            raise ArgumentError(
                f"input_weight and label_weight should be 0 or more and not both 0, got {weights[0]} and {weights[1]}."
            )

    @property
    def needs_logits(self) -> bool:
        """Whether the snapshots must give logits, rather than features alone."""
        return self.rule == "accuracy" or (self.rule == "mi" and self.label_estimator == "head")

    @property
    def needs_spatial(self) -> bool:
        """Whether a feature map is needed, rather than vectors alone."""
        return self.rule == "mi" and self.input_estimator == "convolutional"

    @property
    def needs_probe(self) -> bool:
        """Whether the rule looks at what the snapshots do rather than at their place in training."""
        return self.rule not in POSITION_RULES


def select_snapshots(
    store: SnapshotStore,
    settings: SelectionSettings,
    module: nn.Module | None,
    probe: Probe | None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Selection:
    """Score the snapshots of a harvest and choose among them.

    Each rank scores every n-th snapshot, and all get the same result: call it on every rank. The module is handed
    back as it came: weights, modes and device.

    Args:
        store: The harvest.
        settings: How to score and choose.
        module: A module that the snapshots fit; not needed for a rule that goes by position.
        probe: The probe samples; likewise.
        device: Where the module runs.
        progress: Whether rank 0 shows a progress bar.

    Raises:
        SelectionError: If fewer snapshots can be chosen than were asked for.
        SnapshotError: If a file is missing, damaged or hostile.
        TeacherError: If a snapshot does not fit the module.
        ArgumentError: If the module or the probe does not suit the settings.
    """
    if settings.needs_probe and (module is None or probe is None):
        source = store.manifest.source.get("class_path") or "a class that the manifest does not name"
        missing = f"the model that was trained, {source}" if module is None else "data to probe it with"
        raise ArgumentError(
            f"rule={settings.rule!r} runs the snapshots and needs {missing}. Give both (`ckptkd select` takes "
            f"--model and --data, or --fit_config), or a rule that goes by position: {', '.join(POSITION_RULES)}."
        )
    wanted = settings.num_teachers or 1
    if wanted > len(store.snapshots):
        raise SelectionError(_too_few(store, wanted, len(store.snapshots), []))

    own = store.snapshots[current_rank() :: num_ranks()]
    bar = tqdm(own, desc="Selecting teachers", unit="snapshot", disable=not progress or current_rank() > 0)

    def score_own() -> list[Candidate]:
        if not settings.needs_probe:
            return [_check(store, snapshot) for snapshot in bar]
        assert module is not None and probe is not None
        with _borrowed(module, device):
            scorer = _SnapshotScorer(store, settings, module, probe, device)
            return [scorer.score(snapshot) for snapshot in bar]

    scored = [candidate for part in on_all_ranks(score_own) for candidate in part]
    candidates = sorted(scored, key=lambda candidate: candidate.global_step)
    candidates, chosen = _choose(store, settings, candidates)
    return Selection(
        run_id=store.manifest.run_id,
        rule=settings.rule,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings),
        probe=describe_probe(probe) if settings.needs_probe and probe is not None else {},
        candidates=tuple(candidates),
        chosen=chosen,
    )


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
    with _borrowed(module, device):
        module.eval()
        layers = _find_layers(settings, module, samples.inputs, whole=whole)
        features = _extract(settings, module, samples.inputs, layers)
    if settings.needs_logits:
        check_logits(settings, features, samples)


def check_logits(settings: SelectionSettings, features: Features, samples: Probe) -> None:
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


class _SnapshotScorer:
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
            check_logits(settings, features, probe)
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


def _as_candidate(snapshot: Snapshot, non_finite: str | None) -> Candidate:
    reason = None if non_finite is None else f"its weights hold NaN or infinity in {non_finite!r}"
    return Candidate(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step, excluded=reason)


def _check(store: SnapshotStore, snapshot: Snapshot) -> Candidate:
    return _as_candidate(snapshot, find_non_finite(store.load(snapshot)))


def _choose(
    store: SnapshotStore, settings: SelectionSettings, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], tuple[str, ...]]:
    """Rank the usable candidates; gives all of them with their ranks, and the chosen files, the best first."""
    usable = [candidate for candidate in candidates if candidate.excluded is None]
    wanted = settings.num_teachers
    if len(usable) < (wanted or 1):
        raise SelectionError(_too_few(store, wanted or 1, len(usable), candidates))
    if wanted is None:
        wanted = 1 if settings.rule in ("full", "half") else min(_DEFAULT_TEACHERS, len(usable))
    steps = torch.tensor([candidate.global_step for candidate in usable], dtype=torch.float64)
    if settings.rule == "mi":
        usable = _with_scores(usable, settings)
    if settings.needs_probe:
        scores = torch.tensor([candidate.score for candidate in usable], dtype=torch.float64)
        order = rank_descending(scores, steps).tolist()
    else:
        order = rank_by_position(steps, settings.rule, wanted).tolist()
    ranks = {usable[index].file: rank for rank, index in enumerate(order, start=1)}
    by_file = {candidate.file: candidate for candidate in usable}
    ranked = [
        replace(by_file.get(candidate.file, candidate), rank=ranks.get(candidate.file)) for candidate in candidates
    ]
    return ranked, tuple(usable[index].file for index in order[:wanted])


def _with_scores(usable: Sequence[Candidate], settings: SelectionSettings) -> list[Candidate]:
    terms = {
        name: normalise(
            torch.tensor([getattr(candidate, name) for candidate in usable], dtype=torch.float64),
            settings.normalisation,
        ).tolist()
        for name in ("input_information", "label_information")
    }
    return [
        replace(
            candidate,
            input_term=input_term,
            label_term=label_term,
            score=settings.input_weight * input_term + settings.label_weight * label_term,
        )
        for candidate, input_term, label_term in zip(usable, *terms.values(), strict=True)
    ]


def _too_few(store: SnapshotStore, wanted: int, usable: int, candidates: Sequence[Candidate]) -> str:
    reasons = "".join(
        f" {candidate.file} is excluded: {candidate.excluded}." for candidate in candidates if candidate.excluded
    )
    return (
        f"num_teachers={wanted}, but {store.folder} has {usable} usable of {len(store.snapshots)} snapshots.{reasons} "
        f"The snapshots are kept; ask for fewer: `ckptkd select {store.folder} --num_teachers {max(usable, 1)}`."
    )


@contextmanager
def _borrowed(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Lend a module out and give it back with the weights, modes and device that it had."""
    first = next(iter(module.parameters()), None)
    home = torch.device("cpu") if first is None else first.device
    weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
    modes = [(child, child.training) for child in module.modules()]
    module.to(device)
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that came after it
            yield
    finally:
        module.to(home)
        with torch.no_grad():
            for name, value in module.state_dict().items():
                value.copy_(weights[name])
        for child, mode in modes:
            child.training = mode
