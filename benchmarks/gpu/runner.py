"""Gives each stage its time, and outlives whatever it does; ends within its minutes with a table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.lease import FAILED, FINISHED, STAGES, Results
from benchmarks.gpu.tables import make_summary
from benchmarks.gpu.worker import running_stage

GRACE = 15.0  # seconds over its time that a stage gets to end by itself
LAST_SECONDS = 2.0  # for the table
LEAST_SECONDS = 30.0  # with less time left no process is started


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages that OUT has no results of, and print the table.

    Args:
        arguments: Of the command line; None takes the process's.

    Returns:
        How many stages failed.
    """
    start = time.monotonic()
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    _check_device(options.out, options.device)
    until = start + 60 * options.minutes
    _settle(options.out, "the process before ended while this ran")
    run_stages(options, until)
    summary = make_summary(options.out)
    (options.out / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)
    failed = sum(Results.of(options.out, stage).state == FAILED for stage in STAGES)
    print(f"{time.monotonic() - start:.0f} s of {60 * options.minutes:.0f}; {failed} of {len(STAGES)} stages failed.")
    return failed


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="All that only a GPU can tell.")
    option = parser.add_argument
    option("out", type=Path, help="folder for the results; started again with it, what is missing is run")
    option("--data", type=Path, help="folder with packed.safetensors, of python -m benchmarks.gpu.pack")
    option("--minutes", type=float, default=8.0, help="all stages together")
    option("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: everything at toy size")
    option("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these")
    options = parser.parse_args(arguments)
    if options.data is not None and not (options.data / "packed.safetensors").is_file():
        parser.error(f"--data {options.data} has no packed.safetensors; make it with python -m benchmarks.gpu.pack.")
    return options


def run_stages(options: argparse.Namespace, until: float) -> None:
    """Start workers until every stage was run, or time is over.

    Args:
        options: Of the command line.
        until: By :func:`time.monotonic`.
    """
    left = [stage for stage in options.stages if Results.of(options.out, stage).state != FINISHED]
    while left and until - time.monotonic() > LEAST_SECONDS:
        last = run_worker(options, left, until)
        left = left[left.index(last) + 1 :]


def run_worker(options: argparse.Namespace, stages: list[str], until: float) -> str:
    """Run one worker to its end, or kill it where a stage takes too long.

    Returns:
        The last stage that it ran. Where it could not even start, no other one could: the first stage is then marked as
        failed, and the last one is returned.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.worker", str(options.out)]
    command += ["--device", options.device, "--until", str(until), "--stages", *stages]
    if options.data is not None:
        command += ["--data", str(options.data)]
    log = options.out / "log.txt"
    before = {stage: _written(options.out, stage) for stage in stages}
    with log.open("a", encoding="utf-8") as lines:
        worker = subprocess.Popen(
            command, stdout=lines, stderr=lines, start_new_session=True, env=_environment(options)
        )
        word = _watch(worker, options.out, until - LAST_SECONDS)
    _settle(options.out, f"{word}\n{_tail(log)}")
    ran = [stage for stage in stages if _written(options.out, stage) != before[stage]]
    if ran:
        return ran[-1]
    Results.of(options.out, stages[0]).update(state=FAILED, stage=stages[0], traceback=f"{word}\n{_tail(log)}")
    return stages[-1]


def _watch(worker: subprocess.Popen[Any], out: Path, until: float) -> str:
    """Wait for a worker; how it ended, in words."""
    word = ""
    while worker.poll() is None:
        time.sleep(0.1)
        running = running_stage(out)
        limit = until if running is None else min(until, running[1] + GRACE)
        if time.monotonic() > limit:
            word = "killed, for it took more than its time"
            break
    with contextlib.suppress(ProcessLookupError):  # with all that it started, also where it ended by itself
        os.killpg(worker.pid, signal.SIGKILL)
    code = worker.wait()
    return word or f"the process ended with {code}"


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """For a worker: compiled code is kept for the next one, and cuBLAS can be deterministic."""
    own = {
        "TORCHINDUCTOR_CACHE_DIR": str(options.out.resolve() / "work" / "inductor"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    return {**own, **os.environ}


def _settle(out: Path, word: str) -> None:
    """Mark a stage that says it runs, and does not any more, as failed."""
    running = running_stage(out)
    if running is not None:
        Results.of(out, running[0]).update(state=FAILED, traceback=word)


def _written(out: Path, stage: str) -> int | None:
    path = out / f"{stage}.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])


def _check_device(out: Path, device: str) -> None:
    for stage in STAGES:
        path = out / f"{stage}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8")).get("about", {}).get("device", device)
            if (found == "cpu") != (device == "cpu"):
                sys.exit(f"{out} holds results of {found}, and --device is {device}. Give another folder.")
