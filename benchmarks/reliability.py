"""The reliability experiments at full count: ``python -m benchmarks.reliability [--only NAME ...] [--out FILE]``.

Each runs in a process of its own; a part that fails stops the command. The tests run the same at smaller counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import lightning
import torch

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
    "rank_faults": ("rank_faults", (3, 0)),
    "interruptions": ("interruptions", (3, 0)),
}


def main() -> None:
    """Run the experiments and add their results to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability.json"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
    for name in options.only:
        module, arguments = EXPERIMENTS[name]
        start = time.monotonic()
        result = run_trials(module, *arguments, seconds=7200)
        results[name] = {
            "command": " ".join(["python -m", f"tests.reliability.{module}", *map(str, arguments)]),
            "seconds": round(time.monotonic() - start),
            **result,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {result}", flush=True)


if __name__ == "__main__":
    main()
