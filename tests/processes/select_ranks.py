"""Select from a harvest on as many ranks as there are processes; run by test_ddp.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector, Soup, StudentProxy
from tests.projects import Project, digits


def main(harvest: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    loader = DataLoader(digits(1000, 1203), 64)
    training = DataLoader(digits(0, 300), 32)
    torch.manual_seed(1)
    proxy = StudentProxy(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), steps=5, candidates=3, batch_size=32)
    selectors = {
        "top": MISelector(num_teachers=2),
        "greedy": MISelector(num_teachers=2, ensemble="greedy"),
        "soup": MISelector(num_teachers=2, ensemble=Soup(kind="window", window=3)),
        "race": MISelector(num_teachers=1, race=True),
        "proxy": MISelector(num_teachers=2, student_proxy=proxy),
    }
    for name, selector in selectors.items():
        samples = DataLoader(digits(1000, 1500), 64) if name == "race" else loader
        selector.select(harvest, Project(), samples, training, progress=False)
        if dist.get_rank() == 0:
            (harvest / "selection.json").rename(harvest / f"{name}.json")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # see two_ranks.py
    main(Path(sys.argv[1]))
