"""Fifth stage: the paper's question, with as many seeds as there is time for.

Does an intermediate snapshot teach better than the last one, does mutual information find it, and what do three
snapshots, or their averaged weights, add? For each seed a teacher of its own, and students of each choice.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import TensorDataset

from benchmarks.gpu.device_images import DeviceImages
from benchmarks.gpu.lease import Lease
from benchmarks.gpu.packed import FILE_NAME, PackedImages, read_packed
from benchmarks.gpu.paper_students import ALONE, Choices, choose, train_students
from benchmarks.gpu.paper_teacher import train_teacher
from benchmarks.gpu.student_stack import NetworkStack, accuracies
from lightning_ckptkd.zoo import WideResNet

PAIRS = (("half", "full"), ("MI", "full"), ("MI", "half"), ("top 3", "full"), ("soup", "full"), ("full", ALONE))


@dataclass(frozen=True)
class Size:
    """How large all is.

    Attributes:
        teacher: Depth and widening of the teacher.
        student: The same of the students.
        epochs: Of teacher and students.
        every: Epochs from one snapshot to the next.
        tried: Every so manieth snapshot teaches alone.
        epoch_images: Images of an epoch, drawn anew each time.
        batch_size: Images a batch.
        copies: Students of each choice.
        probe: Validation images for the selector, and training images for a soup's BatchNorm.
        seeds: At most.
    """

    teacher: tuple[int, int]
    student: tuple[int, int]
    epochs: tuple[int, int]
    every: int
    tried: int
    epoch_images: int
    batch_size: int
    copies: int
    probe: int
    seeds: int


TOY = Size((10, 1), (10, 1), (4, 1), 1, 2, 32, 16, 2, 60, 1)
FULL = Size((16, 2), (16, 1), (200, 40), 5, 4, 10_000, 128, 2, 2000, 20)


def run(lease: Lease) -> bool:
    """Go on with the first seed that is not done.

    Args:
        lease: What time there is.

    Returns:
        Whether all seeds are done.

    Raises:
        ArgumentError: If the packed images can't be read.
    """
    if lease.data is None:
        lease.note("not run: it needs --data, a folder with packed images")
        return False
    size = TOY if lease.toy else FULL
    packed = read_packed(lease.data / FILE_NAME)
    about = _json({"data": packed.about, "size": vars(size)})
    if lease.results.document.get("setting", about) != about:
        raise ValueError("The results are of other images or sizes. Give another folder.")
    lease.results.update(setting=about)
    sets = on_device(packed, lease.device)
    for seed in range(size.seeds):
        if str(seed) in lease.results.document.get("seeds", {}):
            continue
        start = time.monotonic()
        found = run_seed(lease, size, packed, sets, seed)
        if found is None:
            lease.note(f"seed {seed} is not done; it goes on where {lease.work} is kept")
            return False
        found["seconds"] = round(time.monotonic() - start, 1)
        lease.results.update(seeds={**lease.results.document.get("seeds", {}), str(seed): found})
        add_rows(lease)
    return True


def run_seed(
    lease: Lease, size: Size, packed: PackedImages, sets: dict[str, DeviceImages], seed: int
) -> dict[str, Any] | None:
    """A teacher and all students of one seed.

    Args:
        lease: What time there is.
        size: Of all.
        packed: The images.
        sets: Those on the device.
        seed: Of teacher and students.

    Returns:
        Accuracies on test images; None where time was over.
    """
    folder = lease.work / f"seed_{seed}"
    folder.mkdir(exist_ok=True)
    make_teacher, make_student = (partial(WideResNet, *of, packed.num_classes) for of in (size.teacher, size.student))
    training: dict[str, Any] = {"epoch_images": size.epoch_images, "batch_size": size.batch_size, "seed": seed}
    word = train_teacher(
        make_teacher,
        sets["train"],
        folder,
        lease.device,
        lease.left,
        epochs=size.epochs[0],
        every=size.every,
        **training,
    )
    if word is None:
        return None
    lease.note(f"teacher of seed {seed}: {word}")
    seen = (images_of(sets[split], size.probe) for split in ("val", "train"))
    choices, left_out = choose(folder / "harvest", make_teacher, size.tried, *seen, lease.device)
    for text in left_out:
        lease.note(text)
    students, word = train_students(
        choices,
        make_student,
        sets["train"],
        folder / "students.pt",
        lease.device,
        lease.left,
        copies=size.copies,
        epochs=size.epochs[1],
        **training,
    )
    lease.note(f"students of seed {seed}: {word}")
    if students is None:
        return None
    teachers = NetworkStack(list(choices.members.values()), lease.device)
    return _accuracies(choices, teachers, students, sets["test"], size)


def on_device(packed: PackedImages, device: str) -> dict[str, DeviceImages]:
    """Each split on the device, normalised by the training images' own mean and deviation.

    Args:
        packed: The images.
        device: Where they stay.
    """
    pixels = packed.of("train")[0][:5000].double()
    mean, std = pixels.mean((0, 1, 2)).float(), pixels.std((0, 1, 2)).float()
    return {split: DeviceImages(*packed.of(split), mean, std, device) for split in ("train", "val", "test")}


def images_of(images: DeviceImages, count: int) -> TensorDataset:
    """The first images of a split and their labels, for the selector.

    Args:
        images: On the device.
        count: Of them; all where there are fewer.
    """
    which = torch.arange(min(count, len(images)), device=images.labels.device)
    return TensorDataset(images.plain(which).cpu(), images.labels[which].cpu())


def add_rows(lease: Lease) -> None:
    """What the seeds that are done say together.

    Args:
        lease: Where to read and write.
    """
    seeds = lease.results.document["seeds"].values()
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        for name, values in seed["students"].items():
            runs.setdefault(name, []).extend(100 * value for value in values)
    for name, values in runs.items():
        note = f"{len(values)} students of {len(seeds)} teacher(s)"
        lease.add(f"accuracy of students, %: {name}", statistics.mean(values), None, note + spread(values))
    for one, other in PAIRS:
        if one in runs and other in runs and len(runs[one]) == len(runs[other]):
            gains = [a - b for a, b in zip(runs[one], runs[other], strict=True)]
            lease.add(f"points: {one} over {other}", statistics.mean(gains), None, f"pairs{spread(gains)}")


def spread(values: list[float]) -> str:
    """Their standard deviation as text; empty for fewer than two."""
    return f"; standard deviation {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def _accuracies(
    choices: Choices, teachers: NetworkStack, students: NetworkStack, test: DeviceImages, size: Size
) -> dict[str, Any]:
    of_students = accuracies(students, test.batches(500))
    of_teachers = accuracies(teachers, test.batches(500))
    return {
        "teachers": dict(zip(choices.members, of_teachers, strict=True)),
        "shares": choices.shares,
        "students": choices.by_choice(of_students, size.copies),
    }


def _json(value: Any) -> Any:
    """As a JSON file gives it back."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, tuple | list) else value
