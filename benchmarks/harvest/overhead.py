"""``overhead``: how much longer training takes with a harvest."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass

import torch

from benchmarks.harvest.machine import say
from benchmarks.harvest.measured import Options, Row, Spread
from benchmarks.harvest.trainings import Training, step_seconds, train

SNAPSHOT_EVERY_SECONDS = 5.0
OVERHEAD_TARGET = 1.01


@dataclass(frozen=True)
class SettingResult:
    """Paired runs with one number of threads for torch."""

    setting: str
    threads: int
    steps: int
    steps_between: int
    snapshots: int
    runs: list[Training]
    pair_ratios: list[float]
    ratio: float
    every_other: Spread
    baseline_spread: float
    others_share: float
    blocked_share: float
    blocked_and_writer_share: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        pairs = ", ".join(f"{ratio:.4f}" for ratio in self.pair_ratios)
        spread = f"pairs {pairs}; runs without harvest differ by {self.baseline_spread:.1%}"
        others = f"other processes took {self.others_share:.1%} of the CPU"
        intervals = f"{len(self.every_other.raw)} snapshots; the middle half {quartiles(self.every_other)}"
        whole, part = f"time with harvest / without, {self.setting}", "of the run with harvest: "
        return [
            Row(whole, self.ratio, OVERHEAD_TARGET, f"{spread}; {others}", self.baseline_spread),
            Row("one run: an interval with a snapshot / without", self.every_other.median, OVERHEAD_TARGET, intervals),
            Row(f"{part}training blocked", self.blocked_share, OVERHEAD_TARGET - 1),
            Row(f"{part}training blocked or the writer's CPU busy", self.blocked_and_writer_share, None),
        ]


@dataclass(frozen=True)
class OverheadResult:
    """How much longer training takes."""

    settings: list[SettingResult]

    def rows(self) -> list[Row]:
        """The lines of the table."""
        return [row for setting in self.settings for row in setting.rows()]


def measure_overhead(options: Options) -> OverheadResult:
    """With a core to spare and with none; on a GPU there is always one to spare."""
    cores = torch.get_num_threads()
    settings = {"a core to spare": max(1, cores - 1), "all cores busy": cores}
    if options.device.type == "cuda":
        settings = {"GPU": cores}
    try:
        return OverheadResult([measure_setting(name, threads, options) for name, threads in settings.items()])
    finally:
        torch.set_num_threads(cores)


def measure_setting(name: str, threads: int, options: Options) -> SettingResult:
    """Pairs of runs in the order AB BA AB ..., after one run that says how long a step takes."""
    torch.set_num_threads(threads)
    between = max(1, round(SNAPSHOT_EVERY_SECONDS / step_seconds(options)))
    snapshots = max(2, round(options.seconds / SNAPSHOT_EVERY_SECONDS))
    steps = snapshots * between + between // 2  # the last snapshot is not at the very end, where training waits for it
    runs: list[Training] = []
    for pair in range(options.pairs):
        for harvested in (False, True) if pair % 2 == 0 else (True, False):
            runs.append(train(options, steps, between, harvested))
            say(f"  {name}, {'with' if harvested else 'without'} harvest: {runs[-1].seconds:.2f} s")
    every_other = train(options, (2 * snapshots + 3) * between, between, harvested=True, every=2)
    return _setting_result(
        name, threads, steps, between, snapshots, runs, Spread.of(ratios_of_every_other(every_other))
    )


def ratios_of_every_other(run: Training) -> list[float]:
    """Each interval with a snapshot against the mean of its neighbours without: a machine's drift cancels."""
    times = run.intervals  # the first is without a snapshot
    return [2 * times[place] / (times[place - 1] + times[place + 1]) for place in range(1, len(times) - 1, 2)]


def quartiles(spread: Spread) -> str:
    """The range of the middle half of some ratios."""
    return f"{spread.quartiles[0]:.3f} to {spread.quartiles[1]:.3f}"


def _setting_result(
    name: str, threads: int, steps: int, between: int, snapshots: int, runs: list[Training], every_other: Spread
) -> SettingResult:
    harvested = [run for run in runs if run.harvested]
    plain = [run for run in runs if not run.harvested]
    ratios = [one.seconds / other.seconds for one, other in zip(harvested, plain, strict=True)]
    seconds = [run.seconds for run in plain]
    total = sum(run.seconds for run in harvested)
    blocked = sum(sum(run.hooks.values()) for run in harvested)
    writing = sum(run.writer_seconds for run in harvested)
    return SettingResult(
        name,
        threads,
        steps,
        between,
        snapshots,
        runs,
        ratios,
        statistics.median(ratios),
        every_other,
        (max(seconds) - min(seconds)) / statistics.median(seconds),
        sum(run.others_seconds for run in runs) / sum(run.seconds for run in runs) / len(os.sched_getaffinity(0)),
        blocked / total,
        (blocked + writing) / total,
    )
