"""Third stage: what teachers cost a student, in each way to run them."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.distillation.costs import in_turn
from benchmarks.distillation.peer_loops import (
    INSTALL_TORCHDISTILL,
    LightningTraining,
    PublishedLoop,
    Stopwatch,
    TorchdistillTraining,
    Training,
    has_torchdistill,
)
from benchmarks.gpu.graphs import graphed
from benchmarks.gpu.lease import Lease
from benchmarks.gpu.tables import target_of
from lightning_ckptkd import DistillationModule, SnapshotStore, TeacherCache
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import Acceleration, TeacherEnsemble, TeacherPath
from lightning_ckptkd.teachers.calibration import EXACT
from lightning_ckptkd.zoo import Classifier, WideResNet

PUBLISHED, PLAIN, LIVE, LIVE_BF16, CACHED = "published loop", "plain training", "live", "live, bf16", "cached"
_WORDS = {PUBLISHED: "the published loop"}


@dataclass(frozen=True)
class Size:
    """How large all is.

    Attributes:
        teacher: Depth and widening of the teachers.
        student: The same of the student.
        side: Height and width of an image.
        batch_size: Images a batch.
        steps: In an epoch.
        rounds: Of what is timed in turn.
        times: Batches that are timed together.
    """

    teacher: tuple[int, int]
    student: tuple[int, int]
    side: int
    batch_size: int
    steps: int
    rounds: int
    times: int


TOY = Size((10, 2), (10, 1), 8, 32, 1, 1, 1)
FULL = Size((16, 2), (16, 1), 32, 128, 100, 5, 20)


def run(lease: Lease) -> bool:
    """Measure paths, then epochs, of four teachers and then of one; compiled code last, which takes long to make.

    Args:
        lease: What time there is.

    Returns:
        Whether there was time for all.
    """
    size = TOY if lease.toy else FULL
    parts: list[tuple[str, Callable[[], None], float]] = [
        (f"{part.__name__} of {_teachers(count)}", partial(part, lease, size, count), seconds)
        for count in (4, 1)
        for part, seconds in ((paths, 5.0), (epochs, 15.0))
    ]
    if not lease.toy:
        parts.append(("compiled code", partial(compiled, lease, size, 4), 50.0))
    else:
        lease.note("compiled code and CUDA graphs: not on the CPU, where compiled teachers have tests of their own")
    for name, part, seconds in parts:
        if lease.left() < seconds:
            lease.note(f"{name}: no time was left")
            return False
        part()
    return True


def paths(lease: Lease, size: Size, count: int) -> None:
    """The teachers alone on one batch: each path against the plain loop in float32.

    Args:
        lease: Where to write.
        size: Of all.
        count: Of teachers.
    """
    ways = {
        "folded": (TeacherPath(folded=True), False),
        "folded, channels last": (TeacherPath(folded=True, channels_last=True), False),
        "folded, channels last, bf16": (TeacherPath(folded=True, channels_last=True, bf16=True), False),
    }
    if not lease.toy:
        ways |= {f"{name}, CUDA graph": (path, True) for name, (path, _) in ways.items()}
    _time_paths(lease, size, count, ways)


def compiled(lease: Lease, size: Size, count: int) -> None:
    """The same of compiled code.

    Args:
        lease: Where to write.
        size: Of all.
        count: Of teachers.
    """
    path = TeacherPath(folded=True, channels_last=True, bf16=True, compiled=True)
    name = "folded, channels last, bf16, compiled"
    _time_paths(lease, size, count, {name: (path, False), f"{name}, CUDA graph": (path, True)})


def _time_paths(lease: Lease, size: Size, count: int, ways: dict[str, tuple[TeacherPath, bool]]) -> None:
    device = torch.device(lease.device)
    batch = Batch(images(size, size.batch_size).to(device))
    loop = partial(_loop, make_ensemble(size, count, device).members, batch.inputs)
    expected = loop()
    runs: dict[str, Callable[[], object]] = {"loop": loop}
    made: dict[TeacherPath, TeacherEnsemble] = {}
    words = {}
    for name, (path, graph) in ways.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the compiler says; the note tells how far off it is
                if path not in made:
                    made[path] = _put_on(path, make_ensemble(size, count, device), batch)
                run: Callable[[], Tensor] = partial(made[path], batch)
                run = graphed(run) if graph else run
                difference = float((run().float() - expected).abs().max() / expected.abs().max())
        except Exception as error:  # a path that this machine has not is no reason to leave the others out
            lease.note(f"{_teachers(count)}, {name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        words[name] = f"logits differ by {difference:.0e} of the largest"
        runs[name] = run
    seconds = in_turn(runs, size.rounds, device, size.times)
    for name, word in words.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["loop"], strict=True)]
        milliseconds = [1e3 * statistics.median(seconds[way]) / size.times for way in (name, "loop")]
        note = "{:.3g} ms a batch against {:.3g}; ".format(*milliseconds) + word
        lease.add(f"{_teachers(count)}: {name} / plain loop", statistics.median(ratios), None, note)
    _add_fastest(lease, count)


def _put_on(path: TeacherPath, found: TeacherEnsemble, batch: Batch) -> TeacherEnsemble:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # whose rounding would hide a fault
        found.fold(batch, EXACT)
    if not found.path.folded:
        raise RuntimeError("BatchNorm can't be folded here: the logits would change")
    found.take(channels_last=path.channels_last, bf16=path.bf16)
    if path.compiled:
        found.compile(batch)
    return found


def _add_fastest(lease: Lease, count: int) -> None:
    what = f"{_teachers(count)}: the fastest path / plain loop"
    start, end = f"{_teachers(count)}: ", " / plain loop"
    rows = [row for row in lease.results.document.get("rows", []) if row["what"] != what]
    rows = [row for row in rows if row["what"].startswith(start) and row["what"].endswith(end)]
    best = min(rows, key=lambda row: float(row["value"]))
    name = best["what"].removeprefix(start).removesuffix(end)
    lease.add(what, best["value"], target_of(what) if count == 4 else None, f"{name}; {best['note']}")


def epochs(lease: Lease, size: Size, count: int) -> None:
    """Whole epochs of training in turn: ours, the published loop, torchdistill, and without a teacher.

    Args:
        lease: Where to write.
        size: Of all.
        count: Of teachers.
    """
    device, folder = torch.device(lease.device), lease.work / f"of_{count}"
    harvest = folder / "harvest"
    make_harvest(harvest, size, count)
    generator = torch.Generator().manual_seed(0)
    number = size.batch_size * size.steps
    data = TensorDataset(images(size, number), torch.randint(10, (number,), generator=generator))
    choice = list(range(count))

    def ours(acceleration: str | Acceleration = "auto", cache: TeacherCache | None = None) -> LightningTraining:
        module: LightningModule = DistillationModule(
            student(size), teacher(size), harvest, choice=choice, acceleration=acceleration, cache=cache
        )
        return LightningTraining(module, data, device, folder)

    def members() -> list[nn.Module]:
        return make_ensemble(size, count, device).members

    ways: dict[str, Training] = {
        PLAIN: LightningTraining(Classifier(student(size)), data, device, folder),
        CACHED: ours(cache=TeacherCache(folder / f"cache_{len(list(folder.iterdir()))}")),
        LIVE: ours(),
        LIVE_BF16: ours(Acceleration(bf16=True)),
        PUBLISHED: PublishedLoop(student(size), members(), data, device),
    }
    if has_torchdistill():
        ways["torchdistill"] = TorchdistillTraining(student(size), members(), data, device)
    else:
        lease.note(INSTALL_TORCHDISTILL)
    seconds = _epochs_in_turn(ways, size.rounds, device, lease)
    for name in (CACHED, LIVE, LIVE_BF16):
        for other in (PLAIN, PUBLISHED, "torchdistill"):
            if other in ways:
                _add_ratio(lease, count, name, other, seconds)


def _epochs_in_turn(
    ways: dict[str, Training], rounds: int, device: torch.device, lease: Lease
) -> dict[str, list[float]]:
    """Seconds of each way's epochs; the first round, and what does not fit into the time, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        if turn > 1 and lease.left() < 0:
            break
        for name in ways if turn % 2 == 0 else reversed(ways):
            watch = Stopwatch(device, each_step=False)
            ways[name].run_epoch(watch)
            if turn:
                seconds[name].append(watch.epoch)
    return seconds


def _add_ratio(lease: Lease, count: int, name: str, other: str, seconds: dict[str, list[float]]) -> None:
    ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    what = f"{_teachers(count)}: {name} epoch / epoch of {_WORDS.get(other, other)}"
    note = f"{min(ratios):.3g} to {max(ratios):.3g} of {len(ratios)}; {statistics.median(seconds[name]):.3g} s"
    target = target_of(what) if count == 4 and (name, other) == (CACHED, PLAIN) else None
    lease.add(what, statistics.median(ratios), target, note)


def teacher(size: Size) -> nn.Module:
    """A teacher's network."""
    return WideResNet(*size.teacher, 10)


def student(size: Size) -> nn.Module:
    """The student's network, the same each time."""
    torch.manual_seed(1)
    return WideResNet(*size.student, 10)


def images(size: Size, count: int) -> Tensor:
    """Random pixels: what they show costs no time."""
    return torch.randn(count, 3, size.side, size.side, generator=torch.Generator().manual_seed(2))


def make_ensemble(size: Size, count: int, device: torch.device) -> TeacherEnsemble:
    """Teachers whose BatchNorm has statistics as training leaves them, not the zeros and ones of a new network."""
    torch.manual_seed(0)
    members = [teacher(size) for _ in range(count)]
    for module in (module for member in members for module in member.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    return TeacherEnsemble([member.to(device) for member in members], [str(place) for place in range(count)])


def make_harvest(folder: Path, size: Size, count: int) -> None:
    """Snapshots of the teachers; one that is there is of the same."""
    with SnapshotStore.create(folder, "run", {}) as store:
        for place, member in enumerate(make_ensemble(size, count, torch.device("cpu")).members):
            store.commit(member.state_dict(), epoch=place, global_step=place + 1)


def _loop(members: list[nn.Module], inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([member(inputs) for member in members])


def _teachers(count: int) -> str:
    return f"{count} teacher{'s' if count > 1 else ''}"
