"""The teachers of one harvest or of several, loaded and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.teachers.choice import check_weights, choose_teachers, scores_of, selected_task
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble
from lightning_ckptkd.teachers.scales import as_tensor, scales_of


@dataclass(frozen=True)
class LoadedTeachers:
    """What :func:`load_teachers` gives.

    Attributes:
        ensemble: M teachers.
        snapshots: Theirs.
        weights: What each counts, shape (M,); None: the same.
        tasks: Harvest to the task that its selection read the targets as, where one chose.
        scales: What brings the logits of each to the scale of its last snapshot's, shape (M,); None: not asked for.
    """

    ensemble: TeacherEnsemble
    snapshots: tuple[Snapshot, ...]
    weights: Tensor | None
    tasks: dict[str, str]
    scales: Tensor | None = None


def check_same_teachers(
    saved: Sequence[Mapping[str, str]], own: Sequence[Mapping[str, str]], where: str | Sequence[str]
) -> None:
    """Check that a resumed run has the teachers that it had, in whichever order.

    Args:
        saved: File and SHA-256 of each, of the checkpoint.
        own: The same of the run.
        where: The run's harvest, or several.

    Raises:
        TeacherError: If they are others.
    """
    hashes = [sorted(item["sha256"] for item in files) for files in (saved, own)]
    if hashes[0] != hashes[1]:
        names = [[item["file"] for item in files] for files in (saved, own)]
        raise TeacherError(
            f"The checkpoint's run learnt from {names[0]}, this one would from {names[1]} of {where}. Select the same "
            "snapshots again, name their epochs with choice=, or start a new run."
        )


def pair_harvests(
    snapshots: str | Path | Sequence[str | Path],
    teacher: nn.Module | Sequence[nn.Module],
    weights: Sequence[float] | str | None = None,
) -> dict[str, nn.Module]:
    """The architecture of each harvest; nothing is read.

    Args:
        snapshots: Folder of a harvest, or of several.
        teacher: The architecture of all, or one for each harvest.
        weights: As in :func:`load_teachers`.

    Raises:
        ArgumentError: If the arguments don't go together.
    """
    folders = [str(snapshots)] if isinstance(snapshots, str | Path) else [str(folder) for folder in snapshots]
    teachers = [teacher] * len(folders) if isinstance(teacher, nn.Module) else list(teacher)
    if not folders or len(set(folders)) < len(folders):
        raise ArgumentError(f"snapshots={folders} should name one harvest, or several different ones.")
    if len(teachers) != len(folders):
        raise ArgumentError(
            f"teacher: there are {len(teachers)} architectures for {len(folders)} harvests. Give one for all, or one "
            "for each."
        )
    if weights == "score" and len(folders) > 1:
        raise ArgumentError(
            "teacher_weights='score' needs a single harvest, since scores of different ones can't be compared. Give a "
            "number for each teacher."
        )
    return dict(zip(folders, teachers, strict=True))


def load_teachers(
    harvests: Mapping[str, nn.Module],
    choice: str | Sequence[int] | None = None,
    weights: Sequence[float] | str | None = None,
    *,
    submodule: str | None = None,
    logits_key: str | int | None = None,
    scale: str | None = None,
) -> LoadedTeachers:
    """The chosen snapshots of each harvest as one ensemble, in the order of the harvests.

    Args:
        harvests: Folder and architecture of each.
        choice: What to take of each; see :func:`choose_teachers`.
        weights: What each of the M teachers counts: numbers, or ``score``, as the one harvest's ``selection.json``
            has it.
        submodule: Part of the snapshots' weights to load.
        logits_key: Where the logits are in a teacher's output.
        scale: Of a loss that asks for scales: ``fitted`` or ``auto``.

    Raises:
        ArgumentError: If the choice or the weights can't be used.
        SnapshotError: If a file is missing, damaged or hostile.
        TeacherError: If a snapshot does not fit its teacher, or holds NaN or infinity; if a temperature that a scale
            needs is not known.
    """
    members: list[nn.Module] = []
    names: list[str] = []
    chosen: list[Snapshot] = []
    scores: list[float | None] = []
    scales: list[float] = []
    tasks: dict[str, str] = {}
    for folder, teacher in harvests.items():
        store = SnapshotStore.open(folder)
        own = choose_teachers(store, choice)
        if weights == "score":
            scores += scores_of(store, own)
        if scale is not None:
            scales += scales_of(store, own, scale)
        loaded = TeacherEnsemble.load(store, own, teacher, submodule=submodule, logits_key=logits_key)
        members += loaded.members
        names += [name if len(harvests) == 1 else f"{folder}: {name}" for name in loaded.names]
        chosen += own
        task = selected_task(store, choice)
        if task is not None:
            tasks[folder] = task
    counts = None if weights is None else check_weights(scores or weights, len(chosen))
    ensemble = TeacherEnsemble(members, names, logits_key)
    return LoadedTeachers(ensemble, tuple(chosen), counts, tasks, as_tensor(scales, scale))
