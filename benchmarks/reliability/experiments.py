"""The reliability experiments at full count: ``python -m benchmarks.reliability [--only NAME ...] [--out FILE]``.

Each runs in a process of its own; a part that fails stops the command. The tests run the same at smaller counts.
``--table`` runs nothing and prints the table of docs/reliability.md from the file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from tests.reliability.forking import run_trials

#: Name of the experiment to its module and arguments.
EXPERIMENTS: dict[str, tuple[str, tuple[object, ...]]] = {
    "kills": ("kills", (10_000, 0)),
    "disk_errors": ("disk_errors", ()),
    "full_disk": ("full_disk", (20, 0)),
    "power_loss": ("power_loss", (5_000, 0)),
    "damage": ("corruption", ("damage", 3_000, 0)),
    "clean_loads": ("corruption", ("clean", 1_000, 0)),
    "hostile_manifests": ("hostile_manifests", (20_000, 0)),
    "hostile_names": ("hostile_names", (200, 0)),
    "hostile_checkpoints": ("hostile_checkpoints", (500, 0)),
    "two_runs": ("two_runs", (50, 0)),
    "cache_faults": ("cache_faults", (100, 0)),
    "rank_faults": ("rank_faults", (3, 0)),
    "interruptions": ("interruptions", (3, 0)),
    "object_starts": ("object_stores", ("starts", 100)),
    "object_opens": ("object_stores", ("opens", 1_000)),
    "object_kills": ("object_stores", ("kills", 50)),
    "object_outage": ("object_stores", ("outage", 3)),
}


#: What is done, by experiment, and what came of it; the names in braces are fields of the result.
_ROWS = {
    "kills": (
        "SIGKILL before the n-th call to the disk, {places} places",
        "{trials}",
        "nothing lost, leftovers cleaned",
    ),
    "disk_errors": (
        "each of {calls} calls fails with ENOSPC, EIO, EACCES, EDQUOT, once and for ever",
        "{trials}",
        "{refused} refused by one clear error, {survived} of no consequence",
    ),
    "full_disk": (
        "a disk that is really full",
        "{trials}",
        "{of_these_on_a_tmpfs} on a tmpfs, the rest by a size limit",
    ),
    "power_loss": (
        "power loss at each of {operations} operations; what is not synced dropped, reordered, torn",
        "{states}",
        "the old manifest {old} times, the new {new} times, otherwise none yet; never a mix",
    ),
    "damage": (
        "bit flips, cuts, extensions, zeroed ranges, swapped files",
        "{trials}",
        "{detected} detected before a tensor",
    ),
    "clean_loads": ("loads of undamaged snapshots", "{trials}", "{clean} bit-exact, no false alarm"),
    "hostile_manifests": (
        "mutated manifests and selections",
        "{trials}",
        "{accepted} read, {refused} refused by one error; slowest {slowest_seconds:.2f} s, memory +{megabytes:.0f} MB",
    ),
    "hostile_names": (
        "names, links, pipes and devices that lead elsewhere",
        "{trials}",
        "all refused, nothing opened outside",
    ),
    "hostile_checkpoints": (
        "hostile .ckpt files",
        "{trials}",
        "no code run: {refused} refused, {taken} taken over without what lies beside their weights; {executing} run "
        "code when torch reads them unguarded; slowest {slowest_seconds:.2f} s",
    ),
    "two_runs": (
        "two runs start in one folder at the same moment",
        "{trials}",
        "one won in {one_won}; {refused_by_the_lock} refused by the lock, the rest by the manifest",
    ),
    "cache_faults": (
        "SIGKILL while a cache of teachers' logits is filled, three times each, then filled to the end",
        "{trials}",
        "no chunk lost or written again ({chunks_kept} kept); cache and student as of a run that was not killed",
    ),
    "rank_faults": (
        "one of two gloo ranks raises, dies or hangs in each of six phases",
        "{trials}",
        "both end; slowest {slowest_end_seconds} s with a limit of {time_limit_seconds} s",
    ),
    "interruptions": (
        "exception, Ctrl-C, SIGTERM, SIGKILL in each of 10 epochs at three places, then resumed",
        "{trials}",
        "all equal an uninterrupted run; {made_up_for_from_the_checkpoint} times from the checkpoint",
    ),
    "object_starts": (
        "S3 server: pairs of trainings that start into one URL, 0 to 300 ms apart",
        "{trials}",
        "one won in {one_won}; {refused_by_the_lock} refused by the lock, the rest by the manifest",
    ),
    "object_opens": (
        "S3 server: opens of a harvest, its selection and scores, under a writer that never pauses",
        "{trials}",
        "{whole} whole, of {different_manifests} different manifests",
    ),
    "object_kills": (
        "S3 server: SIGKILL before one of {calls} requests, at any moment, and in {trainings} trainings",
        "{trials}",
        "nothing lost, leftovers cleaned; {locks_left_and_taken_over} locks left, which the same run took over",
    ),
    "object_outage": (
        "S3 server: refuses, or hangs, in 4 of 10 epochs, or is gone for good, with a patience of "
        "{patience_seconds:.0f} s",
        "{trials}",
        "{refuses[dropped]}, {hangs[dropped]} and {gone[dropped]} snapshots dropped, all others there; longest epoch "
        "{refuses[longest_wait_seconds]}, {hangs[longest_wait_seconds]} and {gone[longest_wait_seconds]} s",
    ),
}


def make_table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| experiment | trials | outcome | minutes |", "|---|---:|---|---:|"]
    for name, cells in _ROWS.items():
        result = results.get(name)
        if result is None:
            continue
        numbers = {**result, "megabytes": result.get("memory_growth_bytes", 0) / 2**20}
        texts = [cell.format(**numbers) for cell in cells]
        lines.append(f"| {' | '.join(texts)} | {result['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the experiments and add their results to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability.json"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(make_table(json.loads(options.out.read_text())))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    packages = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "fsspec", "s3fs", "moto")}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), **packages}
    for name in options.only:
        module, arguments = EXPERIMENTS[name]
        start = time.monotonic()
        result = run_trials(module, *arguments, seconds=7200)
        results[name] = {
            "command": " ".join(["python -m", f"tests.reliability.{module}", *map(str, arguments)]),
            "seconds": round(time.monotonic() - start),
            "machine": machine,
            **result,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {result}", flush=True)


if __name__ == "__main__":
    main()
