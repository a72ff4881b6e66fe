"""This build against another: ``python -m benchmarks.builds.against OTHER``, OTHER being the root of its checkout.

Two processes, one with each build, do the same work in turn: a distillation epoch and its steps with one live teacher
and with cached logits, and the ranking of 30 snapshots. Counted is the processor's time of one thread, which other
processes on the machine disturb less than the clock; a ratio is the median over rounds. glibc keeps the memory that it
has (``KEPT``): else one process may hand pages back after each step where the other does not. ``import`` is the time
of ``import lightning_ckptkd`` over that of what it is built on, in processes of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
RESULTS = Path(__file__).parents[1] / "results" / "against.json"
SNAPSHOTS, BATCHES, BATCH_SIZE, PROBE = 30, 24, 64, 500
PARTS = ["live", "cached", "ranking", "import"]
IMPORTS = {
    "ours": "from lightning_ckptkd import *",  # all that it has: by itself, the package imports nothing of these
    "theirs": "import lightning.pytorch, torchmetrics, torchvision",
}


def main() -> None:
    """Measure, print a row for each kind of work, keep all rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.other, options.only)
        return
    found = measure(Path(__file__).resolve().parents[2], options.other.resolve(), options.rounds, options.only)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, rounds in found["ratios"].items():
        lower, _, upper = statistics.quantiles(rounds, n=4, method="inclusive")
        print(f"{name:>28}: {statistics.median(rounds):.3f} ({lower:.3f} to {upper:.3f})", flush=True)


def measure(own: Path, other: Path, rounds: int, parts: list[str]) -> dict[str, Any]:
    """Rounds of ratios, this build's time over the other's, by the name of the work."""
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for place, root in enumerate((own, other)):
            scratch = Path(folder) / str(place)
            scratch.mkdir()
            workers.append(start(root, scratch, parts))
        ratios: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            pair = [ask(worker) for worker in (workers if number % 2 else reversed(workers))]
            ours, theirs = pair if number % 2 else pair[::-1]
            if number:  # the first round warms up
                for name, seconds in ours.items():
                    ratios.setdefault(name, []).append(seconds / theirs[name])
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
    if "import" in parts:
        ratios["import, over its basis"] = [
            import_seconds(own, IMPORTS["ours"]) / import_seconds(own, IMPORTS["theirs"])
            for _ in range(max(3, rounds // 3))
        ]
    return {"command": "python -m benchmarks.builds.against OTHER", "rounds": rounds, "ratios": ratios}


def start(root: Path, scratch: Path, parts: list[str]) -> subprocess.Popen[str]:
    """A process that works with the build under ``root`` whenever it is asked."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **KEPT}
    command = [sys.executable, __file__, str(scratch), "--worker", "--only", *parts]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """What a worker answers: seconds of one round, by the name of the work."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def import_seconds(root: Path, statement: str) -> float:
    """Processor time of an import in a fresh process, the least of three."""
    code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout)
        for _ in range(3)
    )


def work(scratch: Path, parts: list[str]) -> None:
    """One build's process: answers each line of its input with the seconds of a round."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_ckptkd import DistillationModule, MISelector, SnapshotStore, TeacherCache
    from lightning_ckptkd.zoo import CIFARResNet

    warnings.simplefilter("ignore")  # Lightning's about workers and logs are not what is measured
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, io.StringIO()  # tables of each ranking

    def network() -> CIFARResNet:
        return CIFARResNet(depth=14, width=16, num_classes=10)

    class Stopwatch(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.started = 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            self.started = time.process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(time.process_time() - self.started)

    seed_everything(0, verbose=False)
    images, labels = torch.randn(BATCH_SIZE * BATCHES, 3, 16, 16), torch.randint(10, (BATCH_SIZE * BATCHES,))
    data = DataLoader(TensorDataset(images, labels), BATCH_SIZE)
    store = SnapshotStore.create(scratch / "harvest", "run", {})
    for epoch in range(SNAPSHOTS):
        store.commit(network().state_dict(), epoch=epoch, global_step=10 * (epoch + 1))
    del store

    def epoch(cache: TeacherCache | None) -> tuple[float, float]:
        seed_everything(1, verbose=False)
        student = CIFARResNet(depth=8, width=8, num_classes=10)
        module = DistillationModule(student, network(), scratch / "harvest", choice="full", cache=cache)
        clock = Stopwatch()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            deterministic=True,
            callbacks=[clock],
        )
        begin = time.process_time()
        trainer.fit(module, data)
        return time.process_time() - begin, statistics.median(clock.seconds)

    for _ in sys.stdin:
        found = {}
        for name in set(parts) & {"live", "cached"}:
            cache = TeacherCache(scratch / "cache") if name == "cached" else None
            found[f"epoch, {name}"], found[f"step, {name}"] = epoch(cache)
        if "ranking" in parts:
            (scratch / "harvest" / "scores.json").unlink(missing_ok=True)
            begin = time.process_time()
            MISelector(probe_size=PROBE, ensemble="top").select(scratch / "harvest", network(), data, progress=False)
            found["ranking 30 snapshots"] = time.process_time() - begin
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
