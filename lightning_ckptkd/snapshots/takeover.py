"""Making a harvest of Lightning ``.ckpt`` files that a user already has."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots.checkpoint_file import CheckpointFile, open_checkpoint
from lightning_ckptkd.snapshots.fields import is_text, json_safe
from lightning_ckptkd.snapshots.folders import open_folder
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.inert_pickle import Items
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest
from lightning_ckptkd.snapshots.runs import Facts, describe_groups, find_contradiction, find_difference, matches
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import plain_names

_REMEDY = "move it out of the folder"
_ACTION = "taken over"


def harvest_checkpoints(
    checkpoints: str | Path,
    snapshots: str | Path,
    submodule: str | None = None,
    progress: bool = True,
    files: str | Sequence[str] | None = None,
) -> SnapshotStore:
    """Take over a folder of ``.ckpt`` files (``ModelCheckpoint(save_top_k=-1)``) as a harvest.

    Only the weights are made of the checkpoints; no code of theirs runs, and they stay as they are. Links are skipped.
    Of checkpoints with the same step and the same weights the first by name is taken. An interrupted take-over goes on
    when it is called again. The learning rate is left open: a checkpoint holds that of the epoch to come.

    The files must be of one training run. They are refused, before anything is written, if two of them can't be: they
    share a step and differ in their weights, an epoch or a number of batches goes back while steps go on, one epoch
    ends at two steps, or names or shapes of weights differ. They are refused as well if they seem not to be, unless
    ``files`` says that they are: hyper-parameters, or the folder that ModelCheckpoint saved to, differ.

    Where Lightning counted no optimiser steps (all files are of step 0), training batches are counted instead.

    Args:
        checkpoints: Folder with the ``.ckpt`` files.
        snapshots: Folder to make the harvest in.
        submodule: Attribute path of the part of the LightningModule to harvest; None harvests all of it.
        progress: Whether to show a progress bar.
        files: Which files to take: a name or a pattern such as ``*-v1.ckpt``, or several; one that begins with ``!``
            leaves files out. None takes all.

    Returns:
        The harvest.

    Raises:
        ArgumentError: If there are no ``.ckpt`` files, none is among ``files``, or none of their weights belong to
            ``submodule``.
        SnapshotError: If the files are of several runs, a file is no Lightning checkpoint or is damaged or hostile, or
            ``snapshots`` holds another harvest.
    """
    check_types(harvest_checkpoints, locals())
    source = Path(checkpoints).expanduser()
    paths = _find_files(source, None if files is None else [files] if isinstance(files, str) else list(files))
    chosen = "" if files is None else "\0" + json.dumps([files] if isinstance(files, str) else sorted(files))
    run_id = "ckpt-" + hashlib.sha256(f"{source.resolve()}\0{submodule}{chosen}".encode()).hexdigest()[:24]
    found = _find_run(source, paths, submodule, _committed(snapshots, run_id), vouched=files is not None)
    taken: dict[int, Facts] = {}
    for facts in found:
        taken.setdefault(facts.step, facts)
    with contextlib.ExitStack() as held:
        store: SnapshotStore | None = None
        bar = tqdm(taken.values(), desc="Harvesting checkpoints", unit="file", disable=not progress)
        for facts in bar:
            path = source / facts.name
            with open_checkpoint(path, _ACTION, _REMEDY) as checkpoint:
                if replace(facts, digest="") != replace(_read_facts(checkpoint, submodule), step=facts.step):
                    raise SnapshotError(f"{path} was changed while it was read: call this again when it is complete.")
                weights = checkpoint.weights(submodule)
                metrics = _monitored(checkpoint)
                if store is None:
                    store = SnapshotStore.create(snapshots, run_id, _describe(checkpoint, source, submodule))
                    held.enter_context(store)
                store.commit(weights, epoch=facts.epoch, global_step=facts.step, metrics=metrics)
    assert store is not None
    return store


def _find_files(source: Path, patterns: list[str] | None) -> list[Path]:
    paths = sorted(path for path in source.glob("*.ckpt") if path.is_file() and not path.is_symlink())
    if not paths:
        raise ArgumentError(
            f"{source} holds no .ckpt files. Give the folder in which ModelCheckpoint(save_top_k=-1) saved them "
            "(sharded checkpoints are folders: consolidate them first)."
        )
    if patterns is None:
        return paths
    wanted = [path for path in paths if matches(path.name, patterns)]
    if not wanted:
        raise ArgumentError(
            f"files={patterns}: none of the {len(paths)} .ckpt files in {source} is meant. Some of them: "
            f"{', '.join(path.name for path in paths[:5])}."
        )
    return wanted


def _committed(snapshots: str | Path, run_id: str) -> list[Facts]:
    """What an earlier take-over of the same files has made already."""
    folder = open_folder(snapshots)
    if not folder.exists(MANIFEST_NAME):
        return []
    manifest = Manifest.read(folder)
    if manifest.run_id != run_id:
        return []  # which is refused when it is opened
    return [Facts(found.file, found.epoch, found.global_step, digest=found.sha256) for found in manifest.snapshots]


def _find_run(
    source: Path, paths: Sequence[Path], submodule: str | None, committed: Sequence[Facts], *, vouched: bool
) -> list[Facts]:
    """What the files say, in the order of training.

    Raises:
        SnapshotError: If they are not of one run.
    """
    found = []
    for path in paths:
        with open_checkpoint(path, _ACTION, _REMEDY) as checkpoint:
            found.append(_read_facts(checkpoint, submodule))
    if all(facts.step == 0 and facts.batches for facts in found):
        found = [replace(facts, step=facts.batches or 0) for facts in found]
    steps = Counter(facts.step for facts in (*found, *committed))
    found = [
        replace(facts, digest=_hash_weights(source / facts.name, submodule)) if steps[facts.step] > 1 else facts
        for facts in found
    ]
    reason = _why_not_one(found, vouched)
    if reason is not None:
        raise SnapshotError(
            f"{source} holds checkpoints of more than one run: {reason}. Nothing was written. "
            f"{describe_groups(found)} Take one run with files=..., or move the other away."
        )
    for facts in committed:
        other = next((other for other in found if other.step == facts.step and other.digest != facts.digest), None)
        if other is not None:
            raise SnapshotError(
                f"{source / other.name} has other weights at step {facts.step} than {facts.name}, which was made of "
                "this folder before: the files are of another run now. Give another folder for the harvest."
            )
    return sorted(found, key=lambda facts: (facts.step, facts.name))


def _why_not_one(found: Sequence[Facts], vouched: bool) -> str | None:
    contradictory = find_contradiction(found)
    if contradictory is not None:
        one, other, reason = contradictory
        return f"{one.name} and {other.name}: {reason}"
    different = None if vouched else find_difference(found)
    if different is not None:
        one, other, title = different
        return (
            f"{one.name} and {other.name} differ in {title}; if they are of one run all the same, which was resumed "
            "with another value, files='*' takes them"
        )
    return None


def _read_facts(checkpoint: CheckpointFile, submodule: str | None) -> Facts:
    loops = _inside(checkpoint.get("loops"), "fit_loop", "epoch_loop.batch_progress")
    batches = _inside(loops, "total", "ready")
    prefix = "" if submodule is None else f"{submodule}."
    shapes = plain_names({name: shape for name, (_, shape) in checkpoint.describe().items()})
    return Facts(
        name=checkpoint.path.name,
        epoch=checkpoint.natural("epoch"),
        step=checkpoint.natural("global_step"),
        batches=batches if type(batches) is int and 0 <= batches < 2**63 else None,
        ended=_inside(loops, "is_last_batch") is True,
        shapes=frozenset((name, shape) for name, shape in shapes.items() if name.startswith(prefix)),
        signs=_read_signs(checkpoint),
    )


def _read_signs(checkpoint: CheckpointFile) -> dict[str, str]:
    states = checkpoint.get("callbacks")
    named = list(states.pairs) if isinstance(states, Items) else []
    folders = {folder for _, state in named if isinstance(folder := _inside(state, "dirpath"), str)}
    runs = {
        run
        for name, state in named
        if isinstance(name, str) and name.startswith("CheckpointHarvester")
        if isinstance(run := _inside(state, "run_id"), str)
    }
    return {
        "the run that CheckpointHarvester gave them": json.dumps(json_safe(sorted(runs))),
        "their hyper-parameters": _as_text(checkpoint.get("hyper_parameters")),
        "the data's hyper-parameters": _as_text(checkpoint.get("datamodule_hyper_parameters")),
        "the folder that ModelCheckpoint saved to": json.dumps(json_safe(sorted(folders))),
    }


def _as_text(value: object) -> str:
    return json.dumps(json_safe(value), sort_keys=True)


def _inside(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, Items) else None
    return value


def _hash_weights(path: Path, submodule: str | None) -> str:
    with open_checkpoint(path, _ACTION, _REMEDY) as checkpoint:
        weights = checkpoint.weights(submodule)
        copy = HostCopy()
        copy.reserve(plan_layout(weights))
        copy.fill(weights)
        return copy.sha256()


def _describe(checkpoint: CheckpointFile, source: Path, submodule: str | None) -> dict[str, Any]:
    found = checkpoint.get("hyper_parameters")
    class_path = found.get("_class_path") if isinstance(found, Items) else None
    return {
        "class_path": json_safe(class_path) if isinstance(class_path, str) else None,
        "hyper_parameters": json_safe(found) if isinstance(found, Items) else {},
        "submodule": submodule,
        "checkpoints": str(source),
        "written_by_lightning": json_safe(checkpoint.get("pytorch-lightning_version")),
    }


def _monitored(checkpoint: CheckpointFile) -> dict[str, float | None]:
    """The metrics that ModelCheckpoint callbacks monitored when they saved the checkpoint."""
    metrics: dict[str, float | None] = {}
    callbacks = checkpoint.get("callbacks")
    for _, state in callbacks.pairs if isinstance(callbacks, Items) else ():
        if isinstance(state, Items):
            monitor, score = state.get("monitor"), checkpoint.number(state.get("current_score"))
            if isinstance(monitor, str) and is_text(monitor) and score is not None:
                metrics[monitor] = score if math.isfinite(score) else None
    return metrics
