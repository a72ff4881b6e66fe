"""What the estimators cost for many samples, wide features and many classes: ``python -m benchmarks.selection.wide``.

For one snapshot with the default estimators, from its logits (N, K) and features (N, D): both terms and the fitted
temperature. Processor seconds of one thread, each point in a process of its own, and the memory at its peak beyond the
data, over the data (logits and features in float32, 64 components of X in float64). ``--before DIR`` measures another
checkout beside it, over D and K. Slopes are those of log seconds between the last two points of a curve.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Row, make_table

RESULTS = Path(__file__).parents[1] / "results" / "wide.json"
CURVES = {
    "N": [(500, 512, 1000), (1000, 512, 1000), (2000, 512, 1000), (5000, 512, 1000), (10_000, 512, 1000)],
    "D": [(2000, 256, 1000), (2000, 512, 1000), (2000, 1024, 1000), (2000, 2048, 1000)],
    "K": [(2000, 512, 1000), (2000, 512, 4000), (2000, 512, 8000), (2000, 512, 21_841)],
}
CORNER, LONG = (2000, 2048, 21_841), (10_000, 2048, 1000)
SECONDS_TARGET, MEMORY_TARGET, SHARE_TARGET = 5.0, 1.2, 0.05
IMAGES, SIDE = 8, 224
CHILD = """
import json, resource, sys, time
import torch
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.information.robust import deciding_units, outlying_samples, winsorise
from lightning_ckptkd.information.temperature import fitted_temperature

def data(n, d, k):
    torch.manual_seed(0)
    labels, logits = torch.randint(k, (n,)), torch.randn(n, k)
    logits[torch.arange(n), labels] += 5
    features = torch.randn(n, d).relu_()
    x = (features[:, :64] + 0.5 * torch.randn(n, min(d, 64))).double()
    return x, features, logits, labels, assign_folds(n, 5, 0)

def estimate(x, features, logits, labels, folds):
    parts, start = {}, time.process_time()
    def done(name):
        nonlocal start
        parts[name] = time.process_time() - start
        start = time.process_time()
    deciding_units(features, folds), outlying_samples(features)
    pooled = winsorise(features)
    done("fences")
    input_gains = gaussian_gains(x, pooled, folds)
    done("input term")
    label_gains = head_gains(logits, labels, folds)
    done("label term")
    temperature = fitted_temperature(logits, labels)
    done("temperature")
    return parts, [float(input_gains.mean()), float(label_gains.mean()), temperature]

estimate(*data(300, 64, 20))
given = data(*map(int, sys.argv[1:4]))
size = sum(part.numel() * part.element_size() for part in given)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
clock = time.perf_counter()
parts, found = estimate(*given)
clock = time.perf_counter() - clock
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
seconds = sum(parts.values())
print(json.dumps({"parts": parts, "seconds": seconds, "clock": clock, "memory": peak / size, "found": found}))
"""


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout to measure beside this one")
    before = parser.parse_args().before
    here = Path(__file__).parents[2]
    points = sorted({point for curve in CURVES.values() for point in curve} | {CORNER, LONG})
    found = {"now": {str(point): measure(here, point) for point in points}}
    if before is not None:
        found["before"] = {str(point): measure(before, point) for point in (CORNER, *CURVES["K"], *CURVES["D"])}
    rows = [on_two_cores(measure(here, CORNER, threads=2)), *make_rows(found)]
    document = {
        "table": make_table(rows),
        "rows": [asdict(row) for row in rows],
        "points": found,
        "load": os.getloadavg(),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(document["table"])


def measure(checkout: Path, point: tuple[int, int, int], threads: int = 1) -> dict[str, Any]:
    """One point (N, D, K) with the package of a checkout, which is the child's current folder."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, point)]
    shared = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=shared, check=True, capture_output=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def on_two_cores(found: dict[str, Any]) -> Row:
    """By the clock, which other load on the machine makes slower."""
    note = f"{found['seconds']:.2f} processor seconds; load of the machine {os.getloadavg()[0]:.1f}"
    return Row(f"seconds a snapshot by the clock, two threads, {CORNER}", found["clock"], SECONDS_TARGET, note)


def make_rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    """Targets first, then the curves."""
    now, before = found["now"], found.get("before")
    corner = now[str(CORNER)]

    def beside(point: tuple[int, int, int]) -> str:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in now[str(point)]["parts"].items())
        return (
            parts
            if before is None or str(point) not in before
            else f"{parts}; before: {before[str(point)]['seconds']:.1f}"
        )

    passes = forward_seconds() * CORNER[0]
    rows = [
        Row(f"processor seconds a snapshot, N, D, K = {CORNER}", corner["seconds"], None, beside(CORNER)),
        Row(f"memory beyond the data / data, {CORNER}", corner["memory"], MEMORY_TARGET, _memory(before, CORNER)),
        Row(
            f"estimators / forward passes of ResNet-50, {CORNER}",
            corner["seconds"] / passes,
            SHARE_TARGET,
            f"{passes:.0f} s for {CORNER[0]} images of {SIDE} pixels, reckoned from {IMAGES}",
        ),
        Row(f"processor seconds a snapshot, {LONG}", now[str(LONG)]["seconds"], None, beside(LONG)),
    ]
    for axis, curve in CURVES.items():
        place = "NDK".index(axis)
        (x1, y1), (x2, y2) = ((point[place], now[str(point)]["seconds"]) for point in curve[-2:])
        note = ", ".join(f"{point[place]}: {now[str(point)]['seconds']:.2f}" for point in curve)
        if before is not None and all(str(point) in before for point in curve):
            note += "; before: " + ", ".join(f"{before[str(point)]['seconds']:.2f}" for point in curve)
        rows.append(Row(f"slope over {axis}", math.log(y2 / y1) / math.log(x2 / x1), None, f"seconds {note}"))
    return rows


def _memory(before: dict[str, Any] | None, point: tuple[int, int, int]) -> str:
    return "" if before is None else f"before: {before[str(point)]['memory']:.2f}"


def forward_seconds() -> float:
    """Of a ResNet-50 on one image, processor seconds of one thread."""
    from torchvision.models import resnet50

    torch.set_num_threads(1)
    network, images = resnet50().eval(), torch.randn(IMAGES, 3, SIDE, SIDE)
    with torch.no_grad():
        network(images)
        start = time.process_time()
        network(images)
    return (time.process_time() - start) / IMAGES


if __name__ == "__main__":
    main()
