"""Select from a harvest on as many ranks as there are processes; run by test_ddp.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector
from tests.projects import Project, digits


def main(harvest: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    loader = DataLoader(digits(1000, 1203), 64)
    for ensemble in ("top", "greedy"):
        MISelector(ensemble=ensemble, num_teachers=2).select(harvest, Project(), loader, progress=False)
        if dist.get_rank() == 0:
            (harvest / "selection.json").rename(harvest / f"{ensemble}.json")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # see two_ranks.py
    main(Path(sys.argv[1]))
