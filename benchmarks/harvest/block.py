"""``block``: how long a snapshot holds the training thread up, against ``ModelCheckpoint``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.models import resnet50

from benchmarks.harvest.clocks import HookClock
from benchmarks.harvest.measured import Options, Row, Spread
from benchmarks.harvest.trainings import GatedCheckpoint, Idler, Pause, idle_data, quiet_trainer, tensor_bytes
from lightning_ckptkd import CheckpointHarvester

WARM_UP = 2  # snapshots of each kind that are not counted
BLOCK_TARGET = 0.25


@dataclass(frozen=True)
class BlockResult:
    """Seconds that one snapshot holds the training thread up.

    ``*_synchronised`` counts until the GPU is idle, and is None without one. ``beside_full`` is the harvester where
    an ordinary ModelCheckpoint with the optimiser's state saves in the same epoch and asks it for its own state.
    """

    model_bytes: int
    harvester: Spread
    harvester_synchronised: Spread | None
    harvester_beside_full: Spread
    model_checkpoint: Spread
    model_checkpoint_synchronised: Spread | None
    harvester_hooks: dict[str, float]
    ratio: float
    ratio_synchronised: float | None
    ratio_beside_full: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        times = f"{self.harvester} against {self.model_checkpoint}"
        rows = [Row("training blocked by a snapshot / by ModelCheckpoint", self.ratio, BLOCK_TARGET, times)]
        if self.ratio_synchronised is not None:
            times = f"{self.harvester_synchronised} against {self.model_checkpoint_synchronised}"
            rows.append(Row("the same, until the GPU is idle", self.ratio_synchronised, BLOCK_TARGET, times))
        times = f"{self.harvester_beside_full} against {self.model_checkpoint}"
        rows.append(Row("the same, beside a full ModelCheckpoint", self.ratio_beside_full, None, times))
        return rows


def measure_block(options: Options, network: nn.Module | None = None) -> BlockResult:
    """Three kinds of epochs in one run, in the order ABCCBA, so that none always follows the same other.

    Args:
        options: How often, and where.
        network: What is harvested; None is a ResNet-50.
    """
    kinds: tuple[list[int], ...] = ([], [], [])
    for turn in range(WARM_UP + options.rounds):
        for place in range(3):
            kinds[place if turn % 2 == 0 else 2 - place].append(3 * turn + place)
    alone, weights_only, full = kinds
    harvest, checkpoints = options.folder / "harvest", options.folder / "checkpoints"
    harvested = sorted(alone + full)
    harvester = CheckpointHarvester(harvest, epochs=harvested, keep_last=2)
    reference = GatedCheckpoint(checkpoints, weights_only, save_weights_only=True)
    gpu = options.device if options.device.type == "cuda" else None
    clocks = HookClock(harvester, gpu), HookClock(reference, gpu)
    callbacks = [
        Pause(harvest, harvested, checkpoints, options.settle),
        harvester,
        reference,
        GatedCheckpoint(checkpoints / "full", full, save_weights_only=False),
        Pause(harvest, (), checkpoints / "full", options.settle),
    ]
    module = Idler(resnet50(weights=None) if network is None else network)
    # one epoch more: what a snapshot costs ends with the end of the epoch after it
    trainer = quiet_trainer(options.device, options.folder, callbacks, max_epochs=3 * (WARM_UP + options.rounds) + 1)
    trainer.fit(module, idle_data())
    return _block_result(tensor_bytes(module), clocks[0], clocks[1], alone, weights_only, full)


def _block_result(
    model_bytes: int,
    harvester: HookClock,
    reference: HookClock,
    alone: Sequence[int],
    weights_only: Sequence[int],
    full: Sequence[int],
) -> BlockResult:
    own, own_synchronised = _spreads(harvester, alone)
    beside, _ = _spreads(harvester, full)
    lightnings, lightnings_synchronised = _spreads(reference, weights_only)
    ratio_synchronised = None
    if own_synchronised is not None and lightnings_synchronised is not None:
        ratio_synchronised = own_synchronised.median / lightnings_synchronised.median
    return BlockResult(
        model_bytes,
        own,
        own_synchronised,
        beside,
        lightnings,
        lightnings_synchronised,
        harvester.by_hook(),
        own.median / lightnings.median,
        ratio_synchronised,
        beside.median / lightnings.median,
    )


def _spreads(clock: HookClock, epochs: Sequence[int]) -> tuple[Spread, Spread | None]:
    counted = [clock.of_epoch(epoch) for epoch in epochs[WARM_UP:]]
    synchronised = [seconds for _, seconds in counted if seconds is not None]
    return Spread.of([seconds for seconds, _ in counted]), Spread.of(synchronised) if synchronised else None
