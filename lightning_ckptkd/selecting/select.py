"""Selecting: score every snapshot of a harvest on the probe set, spread over ranks, and choose by a rule."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone

import torch
from torch import nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, SelectionError
from lightning_ckptkd.information.probe import Probe
from lightning_ckptkd.information.ranking import POSITION_RULES
from lightning_ckptkd.information.scoring import describe_probe
from lightning_ckptkd.ranks import current_rank, num_ranks, on_all_ranks
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import choose, too_few
from lightning_ckptkd.selecting.score_files import ScoreFiles
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer, check_snapshot
from lightning_ckptkd.snapshots import Candidate, Selection, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.fields import shown


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
    back as it came: weights, modes and device. Scores are kept in the folder as they come, until
    :func:`remove_score_files`: a selection that was interrupted goes on from them.

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
        named = store.manifest.source.get("class_path")
        source = shown(named) if named else "a class that the manifest does not name"
        missing = f"the model that was trained, {source}" if module is None else "data to probe it with"
        raise ArgumentError(
            f"rule={settings.rule!r} runs the snapshots and needs {missing}. Give both (`ckptkd select` takes "
            f"--model and --data, or --fit_config), or a rule that goes by position: {', '.join(POSITION_RULES)}."
        )
    wanted = settings.num_teachers or 1
    if wanted > len(store.snapshots):
        raise SelectionError(too_few(store, wanted, len(store.snapshots), []))

    own = store.snapshots[current_rank() :: num_ranks()]
    bar = tqdm(own, desc="Selecting teachers", unit="snapshot", disable=not progress or current_rank() > 0)

    def score_own() -> list[Candidate]:
        if not settings.needs_probe:
            return [check_snapshot(store, snapshot) for snapshot in bar]
        assert module is not None and probe is not None
        files = ScoreFiles(store, settings, module, probe)
        with borrowed(module, device):
            scorer = SnapshotScorer(store, settings, module, probe, device)
            return [_score(scorer, files, snapshot) for snapshot in bar]

    scored = [candidate for part in on_all_ranks(score_own) for candidate in part]
    candidates = sorted(scored, key=lambda candidate: candidate.global_step)
    candidates, chosen = choose(store, settings, candidates)
    return Selection(
        run_id=store.manifest.run_id,
        rule=settings.rule,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings),
        probe=describe_probe(probe) if settings.needs_probe and probe is not None else {},
        candidates=tuple(candidates),
        chosen=chosen,
    )


def _score(scorer: SnapshotScorer, files: ScoreFiles, snapshot: Snapshot) -> Candidate:
    candidate = files.read(snapshot)
    if candidate is None:
        candidate = scorer.score(snapshot)
        files.write(snapshot, candidate)
    return candidate
