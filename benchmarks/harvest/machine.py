"""The machine that figures were measured on, and what is said meanwhile."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: torch.device, folder: Path) -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else None,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "file_system": file_system(folder),
        "load_average_before": os.getloadavg()[0],
        "packages": {name: importlib.metadata.version(name) for name in ("lightning-ckptkd", "lightning", "torch")},
    }


def file_system(folder: Path) -> str:
    """Kind of the file system that a folder is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    path = folder.resolve()
    kinds = {point: kind for _, point, kind, *_ in mounts if path.is_relative_to(point)}
    return kinds[max(kinds, key=len)]


def say(text: str) -> None:
    """Tell how far it is, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def silence_lightning() -> None:
    """Keep Lightning's notes and hints out of the table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")
