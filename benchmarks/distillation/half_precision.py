"""What bfloat16 saves of the teachers' time: ``python -m benchmarks.distillation.half_precision``.

Processor seconds of a batch with one thread, the best of four in turn, each with what else calibration takes, and how
far the logits are then from the plain loop's. Needs a processor that has instructions for bfloat16.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.distillation.costs import BATCH_SIZE, CLASSES, SIDE, ensemble
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import Acceleration, TeacherEnsemble, calibrate

RESULTS = Path(__file__).parents[1] / "results" / "half_precision.json"
ROUNDS = 4


def main() -> None:
    """Measure, print the table, keep it."""
    os.environ["LIGHTNING_CKPTKD_CACHE"] = ""  # nothing is remembered, all is tried
    torch.set_num_threads(1)
    torch.manual_seed(2)
    layers = [nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    cases = {
        f"four ResNet-14 of width 16, {BATCH_SIZE} images of {SIDE} × {SIDE}": (
            ensemble(torch.device("cpu")),
            Batch(torch.randn(BATCH_SIZE, 1, SIDE, SIDE), torch.randint(CLASSES, (BATCH_SIZE,))),
        ),
        "a ResNet-18, 16 images of 64 × 64": (
            TeacherEnsemble([resnet18(num_classes=10)], ["one"]),
            Batch(torch.randn(16, 3, 64, 64)),
        ),
        "three linear layers of 2,048 at most, 256 samples": (
            TeacherEnsemble([nn.Sequential(*layers)], ["one"]),
            Batch(torch.randn(256, 1024)),
        ),
    }
    table = format_table(
        ["teachers", "exact", "and bf16", "ratio", "logits differ by at most, on average"],
        [[name, *measure(teachers, batch)] for name, (teachers, batch) in cases.items()],
    )
    print(table)
    RESULTS.write_text(json.dumps({"table": table}, indent=1) + "\n")


def measure(teachers: TeacherEnsemble, batch: Batch) -> list[str]:
    """Seconds without and with bfloat16, their ratio, and the differences of the logits."""
    plain = teachers(batch)
    calibrate(teachers, batch, Acceleration())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for half in seconds:
            teachers.take(bf16=half)
            start = time.process_time()
            logits = teachers(batch)
            seconds[half].append(time.process_time() - start)
    apart = (logits.float() - plain).abs()  # of the last, in bfloat16
    without, with_it = (min(found) for found in seconds.values())
    return [
        f"{without:.3f}",
        f"{with_it:.3f}",
        f"{with_it / without:.2f}",
        f"{float(apart.max()):.2g}, {float(apart.mean()):.2g}",
    ]


if __name__ == "__main__":
    main()
