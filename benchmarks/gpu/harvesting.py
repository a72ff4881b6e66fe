"""Second stage: how long a snapshot holds training up, and whether its copy runs beside training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet50, vit_l_16

from benchmarks.gpu.lease import Lease
from benchmarks.gpu.overlap import measure_events, measure_profile
from benchmarks.gpu.tables import target_of
from benchmarks.harvest.block import BlockResult, measure_block
from benchmarks.harvest.measured import Options
from lightning_ckptkd.zoo import CIFARResNet

NAMES = ("25 M parameters", "300 M parameters")
SECONDS_OF_THE_LARGE = 40  # reckoned, for 20 files of 1.2 GB
BLOCKED = "training blocked by a snapshot / by ModelCheckpoint"


def run(lease: Lease) -> bool:
    """Measure the small network, the large one, then whether the copy runs beside training.

    Args:
        lease: What time there is.

    Returns:
        Whether there was time for all.
    """
    networks = [partial(CIFARResNet, 8, 10, width) for width in (8, 16)] if lease.toy else [resnet50, vit_l_16]
    block(lease, NAMES[0], networks[0], rounds=2 if lease.toy else 4)
    has_time = lease.left() > (0 if lease.toy else SECONDS_OF_THE_LARGE)
    if has_time:
        block(lease, NAMES[1], networks[1], rounds=2)
    else:
        lease.note(f"{NAMES[1]}: no time was left")
    if lease.device == "cpu":
        lease.note("whether the copy runs beside training can't be seen on the CPU: there training waits for it")
    else:
        prove(lease, networks[0])
    return has_time


def block(lease: Lease, name: str, make: Callable[[], nn.Module], rounds: int) -> None:
    """Snapshots of one network against ModelCheckpoint's files of it.

    Args:
        lease: Where to write.
        name: Of the network's size.
        make: Makes the network.
        rounds: Snapshots of each kind that are counted.
    """
    network = make()
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    with tempfile.TemporaryDirectory(dir=lease.work) as folder:
        options = Options(0.0, rounds, 0, torch.device(lease.device), Path(folder), settle=0.0 if lease.toy else 0.1)
        result = measure_block(options, network)
    size = f"{millions:.3g} M parameters, {result.model_bytes / 1e6:.0f} MB"
    what = f"{name}: {BLOCKED}"
    lease.add(what, result.ratio, target_of(what), f"{size}; {_times(result)}")
    if result.ratio_synchronised is not None:
        note = f"{result.harvester_synchronised} against {result.model_checkpoint_synchronised}"
        lease.add(f"{name}: the same, until the GPU is idle", result.ratio_synchronised, None, note)
    note = f"{result.harvester_beside_full} against {result.model_checkpoint}"
    lease.add(f"{name}: the same, beside a full ModelCheckpoint", result.ratio_beside_full, None, note)
    raw = lease.results.document.get("raw", {})
    lease.results.update(raw={**raw, name: asdict(result)})


def prove(lease: Lease, make: Callable[[], nn.Module]) -> None:
    """Whether the GPU goes on with training while it copies a snapshot, by its own clock and by its profile.

    Args:
        lease: Where to write.
        make: Makes the network.
    """
    device = torch.device(lease.device)
    found = measure_events(make(), device)
    lease.add("host: until it goes on / the copy's time", found.host / found.copy, None, f"{found}")
    lease.add("GPU: part of the copy that other work hides, by its clock", found.hidden, None, f"{found}")
    with tempfile.TemporaryDirectory(dir=lease.work) as folder:
        share, seconds = measure_profile(make(), device, Path(folder))
    note = f"{1e3 * seconds:.2f} ms of copies to the host in a profiled training that is harvested each third step"
    lease.add("GPU: part of the copies beside which kernels run, by its profile", share, None, note)


def _times(result: BlockResult) -> str:
    return f"{result.harvester} against {result.model_checkpoint}"
