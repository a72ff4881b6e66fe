"""What a harvest costs: ``python -m benchmarks.harvest``, as ratios that are measured in one run.

``block``: how long a snapshot holds the training thread up, against ``ModelCheckpoint``. ``overhead``: how much longer
training takes. ``size``: bytes on disk against bytes of weights. ``leaks``: memory, files and threads over many
snapshots. Give it the machine for itself: what else runs there is in the numbers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.harvest.block import BlockResult, measure_block
from benchmarks.harvest.clocks import UsageClock
from benchmarks.harvest.leaks import LeaksResult, measure_leaks
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.measured import Options, Row
from benchmarks.harvest.overhead import OverheadResult, measure_overhead
from benchmarks.harvest.size import SizeResult, measure_size
from lightning_ckptkd.selecting.report import format_table

Result = BlockResult | OverheadResult | SizeResult | LeaksResult
PARTS: dict[str, Callable[[Options], Result]] = {
    "block": measure_block,
    "overhead": measure_overhead,
    "size": measure_size,
    "leaks": measure_leaks,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harvest", description=__doc__)
    option = parser.add_argument
    option("--part", choices=[*PARTS, "all"], default="all", help="what to measure")
    option("--seconds", type=float, default=60.0, help="overhead: about how long one run takes")
    option("--pairs", type=int, default=3, help="overhead: runs with and without harvest of each setting, 2 or more")
    option("--rounds", type=int, default=20, help="block: snapshots of each kind that are counted, 2 or more")
    option("--device", choices=["cpu", "cuda"], default="cpu")
    option("--folder", type=Path, default=Path(), help="where a temporary folder is made; should be a real disk")
    option("--out", type=Path, default=Path("benchmarks/results/harvest.json"), help="file for all numbers")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.pairs) < 2:
        parser.error("--rounds and --pairs should be 2 or more: one says nothing of the spread.")
    return arguments


def main() -> None:
    """Measure, write all numbers, print the table."""
    arguments = parse_arguments()
    silence_lightning()
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.harvest", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(device, arguments.folder),
        "others_share": {},
        "results": {},
    }
    rows: list[Row] = []
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        say(f"{part} ...")
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=arguments.folder) as folder:
            options = Options(arguments.seconds, arguments.rounds, arguments.pairs, device, Path(folder))
            usage = UsageClock()
            result = PARTS[part](options)
            document["others_share"][part] = usage.others_share()
        document["results"][part] = asdict(result)
        rows += result.rows()
    document["table"] = format_table(("measured", "value", "target", "", "details"), [row.cells() for row in rows])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(document["table"])
    others = ", ".join(f"{share:.1%} during {part}" for part, share in document["others_share"].items())
    print(f"\nOther processes took of the machine's CPU: {others}.")


if __name__ == "__main__":
    main()
