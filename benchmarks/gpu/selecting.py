"""Fourth stage: what ranking the snapshots of an ImageNet network costs, against its bare forward passes."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet50

from benchmarks.gpu.lease import Lease
from benchmarks.gpu.tables import target_of
from benchmarks.selection.ranking import Subject, forward_passes, make_harvest, measure_cost
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.zoo import CIFARResNet

WHAT = "ranking the snapshots / their forward passes"
STEPS = 100  # of a decoder
PASSES = 3  # that one repeat takes: a selection that is not counted, bare passes, a selection


def run(lease: Lease) -> bool:
    """Measure the default estimators, then, on fewer snapshots, the paper's decoders on the device.

    Args:
        lease: What time there is.

    Returns:
        Whether there was time for all.
    """
    device = torch.device(lease.device)
    make: Callable[[], nn.Module] = partial(CIFARResNet, 8, 10, 8) if lease.toy else partial(resnet50, weights=None)
    count, samples, side, batch_size = (3, 60, 16, 32) if lease.toy else (30, 2000, 224, 250)
    folder = lease.work / "harvest"
    shutil.rmtree(folder, ignore_errors=True)
    harvest = make_harvest(folder, count, make)
    once = _seconds_of_one(device, subject(make, samples, side, batch_size))
    while PASSES * count * once > 0.7 * lease.left() and samples > 500:
        samples, once = samples // 2, once / 2
    repeats = min(3, max(1, int((0.8 * lease.left() / (count * once) - 1) / 2)))
    row = measure_cost(harvest, device, 1 if lease.toy else repeats, subject(make, samples, side, batch_size), count)
    lease.add(WHAT, row.value, target_of(WHAT), f"{count} snapshots of {type(make()).__name__}, {row.note}")
    if not lease.toy and lease.left() < 15:
        lease.note("the paper's decoders: no time was left")
        return False
    few = make_harvest(folder.with_name("few"), 2, make)
    seconds = decoder_seconds(
        few, device, subject(make, min(samples, 500), side, batch_size), 2 if lease.toy else STEPS
    )
    lease.add(
        "seconds of the paper's decoders for a snapshot",
        seconds,
        None,
        f"{2 if lease.toy else STEPS} steps on the device",
    )
    for used in (folder, few):
        shutil.rmtree(used)
    return True


def subject(make: Callable[[], nn.Module], samples: int, side: int, batch_size: int) -> Subject:
    """Networks of one kind, on pixels and labels that are drawn at random.

    Args:
        make: Makes a network.
        samples: Of the probe set.
        side: Height and width of an image.
        batch_size: Images a forward pass.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, 3, side, side, generator=generator)
    labels = torch.arange(samples) % 10

    def probe() -> tuple[Tensor, Tensor]:
        return images, labels

    return Subject(make, probe, batch_size)


def decoder_seconds(harvest: Path, device: torch.device, what: Subject, steps: int) -> float:
    """Seconds that ``convolutional`` estimators of both terms take for a snapshot.

    Args:
        harvest: Folder of two snapshots, which were not scored yet.
        device: Where they are trained.
        what: Network and probe set.
        steps: Of training, at most.
    """
    loader = DataLoader(TensorDataset(*what.probe()), what.batch_size)
    rule = MI(input_estimator="convolutional", label_estimator="convolutional", decoder_steps=steps)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        MISelector(rule=rule, num_teachers=1).select(harvest, what.network(), loader, device=device, progress=False)
    return (time.perf_counter() - start) / 2


def _seconds_of_one(device: torch.device, what: Subject) -> float:
    forward_passes(device, 1, what)
    start = time.perf_counter()
    forward_passes(device, 1, what)
    return time.perf_counter() - start
