"""A ``StudentProxy`` against that of another build: ``python -m benchmarks.selection.proxy OTHER --data CIFAR100``.

OTHER is the root of the other build's checkout, CIFAR100 a folder with ``train/<class>/<image>``. Two processes, one
with each build and both with one thread, try five candidates in turn; a ratio is the median over rounds, in the
processor's time and by the clock. What is counted is the proxy alone: the snapshots were scored before. Where the time
goes is counted in the same runs. Writes ``benchmarks/results/proxy.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "proxy.json"
TARGET = 0.50
CANDIDATES, PROBE = 5, 1000
STEPS = {"digits": 200, "files": 20, "photographs": 5, "decoded": 20}
TITLES = {
    "digits": "digits in memory, MLP 256-256 to MLP 32",
    "files": "CIFAR-100, PNG files, crops and flips, ResNet-14 to ResNet-8 with stride 2",
    "photographs": "JPEG files of 256 pixels, crops of 64 and flips, ResNet-14 to ResNet-8 with stride 2",
    "decoded": "CIFAR-100 decoded beforehand, crops and flips, ResNet-14 to ResNet-8 with stride 2",
}
PARTS = ("data", "teachers", "students", "judging")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--data", type=Path, help="root of CIFAR-100; None leaves its tasks out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=TITLES, nargs="+", default=list(TITLES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.other, options.data)
        return
    tasks = [task for task in options.only if options.data is not None or task in ("digits", "photographs")]
    known = json.loads(options.out.read_text())["rounds"] if options.out.exists() else {}
    document: dict[str, Any] = {}
    for task, rounds in measure(options.other.resolve(), options.data, options.rounds, tasks):
        known[task] = rounds
        document = {
            "command": "python -m benchmarks.selection.proxy OTHER --data CIFAR100",
            "table": table(known),
            "parts": parts_table(known),
            "load": os.getloadavg(),
            "rounds": known,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(document["table"], document["parts"], sep="\n\n")


def measure(
    other: Path, data: Path | None, rounds: int, tasks: list[str]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each task with its rounds of ``{"own": ..., "other": ...}``."""
    roots = {"own": Path(__file__).resolve().parents[2], "other": other}
    with TemporaryDirectory() as folder:
        workers = {}
        for name, root in roots.items():
            scratch = Path(folder) / name
            scratch.mkdir()
            environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
            command = [sys.executable, __file__, str(scratch), "--worker"]
            command += [] if data is None else ["--data", str(data.resolve())]
            workers[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
            )
        for task in tasks:
            pairs = []
            for number in range(rounds + 1):
                names = list(workers) if number % 2 else list(workers)[::-1]
                pair = {name: ask(workers[name], task, STEPS[task] if number else 2) for name in names}
                pairs += [pair] if number else []  # the first round warms up
            yield task, pairs
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()


def ask(worker: subprocess.Popen[str], task: str, steps: int) -> dict[str, Any]:
    """What one round took."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{task} {steps}\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Ratios and targets, as Markdown."""
    from benchmarks.rows import Row, make_table

    rows = []
    for task, rounds in found.items():
        ratios = [pair["own"]["processor"] / pair["other"]["processor"] for pair in rounds]
        clock = statistics.median(pair["own"]["clock"] / pair["other"]["clock"] for pair in rounds)
        own, other = (statistics.median(pair[name]["processor"] for pair in rounds) for name in ("own", "other"))
        distance = max(apart(pair) for pair in rounds)
        note = (
            f"{min(ratios):.3f} to {max(ratios):.3f}, {clock:.3f} by the clock; {own:.1f} s against {other:.1f} for "
            f"{STEPS[task]} steps; I(Y;S) differs by {distance:.0e} nats at most"
        )
        rows.append(Row(TITLES[task], statistics.median(ratios), TARGET, note))
    return make_table(rows)


def apart(pair: dict[str, Any]) -> float:
    """The most that a student's score differs between the builds, in nats."""
    own, other = pair["own"]["scores"], pair["other"]["scores"]
    return max(abs(own[file] - other[file]) for file in other)


def parts_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Where the time goes, in processor seconds, as Markdown."""
    from lightning_ckptkd.selecting.report import format_table

    rows = []
    for task, rounds in found.items():
        for name, title in (("other", "the other build"), ("own", "this build")):
            seconds = [statistics.median(pair[name]["parts"][part] for pair in rounds) for part in PARTS]
            rows.append((TITLES[task], title, *(f"{each:.2f}" for each in seconds)))
    return format_table(["processor seconds", "", *PARTS], rows)


def work(scratch: Path, data: Path | None) -> None:
    """One build's process: answers each line, a task and a number of steps, with what it took."""
    import torch

    warnings.simplefilter("ignore")  # about workers
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, io.StringIO()  # tables of each ranking
    made: dict[str, Any] = {}
    for line in sys.stdin:
        task, steps = line.split()
        if task not in made:
            made[task] = prepare(task, scratch / task, data)
        print(json.dumps(made[task](int(steps))), file=answers, flush=True)


def prepare(task: str, folder: Path, root: Path | None) -> Callable[[int], dict[str, Any]]:
    """Make a harvest of five snapshots, score them, and give what tries students on them."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    from lightning_ckptkd import MISelector, SnapshotStore, StudentProxy
    from lightning_ckptkd.zoo import CIFAR100DataModule, CIFARResNet, DigitsDataModule, ImageFolderDataModule
    from lightning_ckptkd.zoo.images import to_tensor

    torch.manual_seed(0)  # also of what is drawn where images are decoded beforehand
    if task == "digits":
        images: Any = DigitsDataModule()
        classes = 10
    elif task == "photographs":
        usual = to_tensor((0.5,) * 3, (0.25,) * 3)
        crops = [v2.RandomResizedCrop(64, scale=(0.3, 1.0)), v2.RandomHorizontalFlip(), *usual]
        images = ImageFolderDataModule(
            write_photographs(folder / "images"),
            num_workers=0,
            val_size=200,
            test_size=1,
            train_transforms=crops,
            eval_transforms=[v2.Resize(64), *usual],
        )
        classes = 2
    else:
        images, classes = CIFAR100DataModule(root, num_workers=0, train_size=20000, val_size=PROBE), 100
    images.prepare_data()
    images.setup("fit")
    training, probe = images.train_dataloader(), images.val_dataloader()
    if task == "decoded":
        training = DataLoader(Decoded(training.dataset, 4000), 128, shuffle=True)

    def network(depth: int, width: int) -> nn.Module:
        if task == "digits":
            widths = (256, 256) if depth == 14 else (32,)
            sizes = (64, *widths)
            hidden = [part for a, b in zip(sizes, widths, strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
            return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))
        return CIFARResNet(depth, num_classes=classes, width=width, stem_stride=2)

    torch.manual_seed(0)
    teacher, student = network(14, 16), network(8, 8)
    store = SnapshotStore.create(folder / "harvest", "run", {})
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    batch = next(iter(training))
    for epoch in range(CANDIDATES):
        for _ in range(4):
            optimizer.zero_grad()
            cross_entropy(teacher(batch[0]), batch[1]).backward()
            optimizer.step()
        store.commit(teacher.state_dict(), epoch=epoch, global_step=4 * (epoch + 1))
    del store

    def tried(steps: int) -> dict[str, Any]:
        shutil.rmtree(folder / "round", ignore_errors=True)
        shutil.copytree(folder / "harvest", folder / "round")
        proxy = StudentProxy(student, steps=steps, candidates=CANDIDATES)
        selector = MISelector(rule="accuracy", probe_size=PROBE, student_proxy=proxy)
        with counted() as found:
            selection = selector.select(folder / "round", teacher, probe, training, progress=False)
        scores = {c.file: c.student_information for c in selection.candidates}
        return {**found, "scores": scores}

    return tried


class Decoded:
    """Images in memory, cropped after padding by 4 and flipped at random.

    Args:
        images: Are read once.
        count: How many.
    """

    def __init__(self, images: Any, count: int) -> None:
        from torch.nn.functional import pad

        pairs = [images[index] for index in range(count)]
        self._pairs = [(pad(image, [4] * 4), label) for image, label in pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Any:
        import torch

        image, label = self._pairs[index]
        top, left = torch.randint(9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        return (image.flip(2) if torch.rand(()) < 0.5 else image), label


def write_photographs(folder: Path) -> Path:
    """Pieces of scikit-learn's two photographs as JPEG files of 256 pixels."""
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(400):
            top, left = (int(torch.randint(size - 256, (), generator=generator)) for size in photograph.shape[:2])
            piece = Image.fromarray(photograph[top : top + 256, left : left + 256])
            piece.save(folder / "train" / name / f"{number}.jpg", quality=90)
    return folder


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    """Count what the proxy takes, in either build: seconds of the processor and by the clock, and of its parts."""
    from lightning_ckptkd.selecting import proxy_scorer
    from lightning_ckptkd.selecting.proxy_scorer import ProxyScorer
    from lightning_ckptkd.selecting.training_data import TrainingData

    try:
        from lightning_ckptkd.selecting import proxy_teachers as teaching
    except ImportError:  # a build of before
        teaching = proxy_scorer  # type: ignore[misc]
    found: dict[str, Any] = {"processor": 0.0, "clock": 0.0, "parts": dict.fromkeys(PARTS, 0.0)}
    kept = [
        (ProxyScorer, "__init__"),
        (ProxyScorer, "score"),
        (TrainingData, "batches"),
        (teaching, "forward"),
        (proxy_scorer, "extract_features"),
    ]
    own = [getattr(owner, name) for owner, name in kept]

    def whole(function: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time(), time.perf_counter()
            result = function(*arguments, **options)
            found["processor"] += time.process_time() - begun[0]
            found["clock"] += time.perf_counter() - begun[1]
            return result

        return run

    def part(function: Any, name: str) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            result = function(*arguments, **options)
            found["parts"][name] += time.process_time() - begun
            return result

        return run

    def batches(*arguments: Any) -> Any:
        iterator = own[2](*arguments)
        following = part(lambda: next(iterator, None), "data")
        while (batch := following()) is not None:
            yield batch

    changed = (whole(own[0]), whole(own[1]), batches, part(own[3], "teachers"), part(own[4], "judging"))
    for (owner, name), function in zip(kept, changed, strict=True):
        setattr(owner, name, function)
    try:
        yield found
    finally:
        for (owner, name), function in zip(kept, own, strict=True):
            setattr(owner, name, function)
        parts = found["parts"]
        parts["students"] = found["processor"] - sum(parts.values())


if __name__ == "__main__":
    main()
