"""How long ``ckptkd`` takes to start: ``python -m benchmarks.builds.start``, as ratios to ``import lightning.pytorch``.

Processor time (user and system) of whole processes with one thread, in turn, several rounds: other load on the machine
makes them a little slower, not many times as the clock would say. The harvest is of 100 checkpoints of one layer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.rows import Row, make_table

RESULTS = Path(__file__).parents[1] / "results" / "start.json"
SNAPSHOTS = 100
HELP_TARGET, COMMAND_TARGET = 0.15, 0.60
SCRIPT = ["-c", "from lightning_ckptkd.commands.run import run; run()"]
BASE = ["-c", "import lightning.pytorch"]
TORCH = ["-c", "import torch"]
COMMANDS = {
    "ckptkd --help": ["--help"],
    "ckptkd --print_completion bash": ["--print_completion", "bash"],
    "ckptkd harvest": ["harvest", "checkpoints"],
    "ckptkd select --rule half": ["select", "snapshots", "--rule", "half"],
    "ckptkd export": ["export", "checkpoints/epoch=0.ckpt", "student.safetensors"],
}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_checkpoints(place / "checkpoints")
        seconds: dict[str, list[float]] = {}
        for _ in range(repeats):
            for name in ("snapshots", "student.safetensors"):
                shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink(missing_ok=True)
            rounds = {"base": BASE, "import torch": TORCH, **{name: [*SCRIPT, *COMMANDS[name]] for name in COMMANDS}}
            for name, words in rounds.items():
                seconds.setdefault(name, []).append(processor_seconds(words, place))
    rows = [row(name, seconds) for name in ("import torch", *COMMANDS)]
    document = {
        "table": make_table(rows),
        "rows": [asdict(each) for each in rows],
        "seconds": seconds,
        "load": os.getloadavg(),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(document["table"])


def make_checkpoints(folder: Path) -> None:
    """Checkpoints of a distillation, as small as they can be."""
    folder.mkdir()
    for epoch in range(SNAPSHOTS):
        weights = {f"student.{name}": value for name, value in torch.nn.Linear(16, 10).state_dict().items()}
        torch.save({"state_dict": weights, "epoch": epoch, "global_step": epoch + 1}, folder / f"epoch={epoch}.ckpt")


def processor_seconds(words: list[str], place: Path) -> float:
    """Of a Python process, to its end."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", *words], cwd=place, env=shared, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def row(name: str, seconds: dict[str, list[float]]) -> Row:
    """The median ratio of the rounds."""
    ratios = [own / base for own, base in zip(seconds[name], seconds["base"], strict=True)]
    target = None if name == "import torch" else COMMAND_TARGET if COMMANDS[name][0][0] != "-" else HELP_TARGET
    own, base = statistics.median(seconds[name]), statistics.median(seconds["base"])
    note = f"median of {', '.join(f'{ratio:.3f}' for ratio in ratios)}; {own:.2f} against {base:.2f} processor seconds"
    return Row(f"{name} / import lightning.pytorch", statistics.median(ratios), target, note)


if __name__ == "__main__":
    main()
