"""The process in which stages run, one after another; what a stage raises is written and ends it.

After a failure on a GPU the process ends too, since a fault there stays in the process: the runner starts another.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.lease import FAILED, FINISHED, OUT_OF_TIME, RUNNING, SHARES, STAGES, Lease, Results

RESERVE = 15.0  # seconds at the end that no stage gets


def main() -> None:
    """Run some stages until a time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--until", type=float, required=True, help="by time.monotonic")
    parser.add_argument("--stages", nargs="+", choices=STAGES, required=True)
    options = parser.parse_args()
    about = describe(options.device)
    for stage in options.stages:
        if not run_stage(stage, options, about):
            sys.exit(1)


def run_stage(stage: str, options: argparse.Namespace, about: dict[str, Any]) -> bool:
    """Run one stage; whether the next one can run in this process."""
    later = options.stages[options.stages.index(stage) :]
    deadline = deadline_of(stage, later, time.monotonic(), options.until - RESERVE)
    results = Results.of(options.out, stage)
    if stage != "paper":
        results.document.clear()  # it goes on; the others are measured anew
    results.update(stage=stage, about=about, state=RUNNING, deadline=deadline, traceback=None, notes=[])
    work = options.out / "work" / stage
    work.mkdir(parents=True, exist_ok=True)
    lease = Lease(results, work, options.device, options.data, deadline)
    start = time.monotonic()
    try:
        module = importlib.import_module(f"benchmarks.gpu.{stage}")
        finished: bool = module.run(lease)
    except Exception:  # of whatever kind: its traceback is kept, and the next stage runs
        results.update(state=FAILED, traceback=traceback.format_exc(), seconds=round(time.monotonic() - start, 1))
        return options.device == "cpu"
    results.update(state=FINISHED if finished else OUT_OF_TIME, seconds=round(time.monotonic() - start, 1))
    return True


def deadline_of(stage: str, later: list[str], now: float, until: float) -> float:
    """When a stage should be over: its share of what is left for it and the later ones.

    Args:
        stage: One of ``STAGES``.
        later: It and those that come after it.
        now: The time.
        until: When all should be over.
    """
    return now + max(0.0, until - now) * SHARES[stage] / sum(SHARES[name] for name in later)


def describe(device: str) -> dict[str, Any]:
    """What the numbers are measured on; ends the process where there is no such device."""
    import torch

    from benchmarks.harvest.machine import silence_lightning

    silence_lightning()
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here. --device cpu runs every stage at toy size.")
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
        "driver": _driver() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch": str(torch.__version__),
        "packages": {name: _version(name) for name in ("torchvision", "lightning", "torchdistill")},
    }
    return about


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def running_stage(out: Path) -> tuple[str, float] | None:
    """The stage whose file says that it runs, and its deadline by :func:`time.monotonic`; None where none does."""
    for stage in STAGES:
        path = out / f"{stage}.json"
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.get("state") == RUNNING:
                return stage, document["deadline"]
    return None


if __name__ == "__main__":
    main()
