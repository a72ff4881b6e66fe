"""What a selection will hold in memory when fitting ends, reckoned from a few samples when it starts."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.selecting.probe import MIN_PROBE_SIZE, Probe
from lightning_ckptkd.selecting.rules import ScoringRule
from lightning_ckptkd.tasks.batch import tensors_in

_TOLD_FROM = 2**30  # bytes
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(samples: Probe, num_samples: int, rule: ScoringRule, *, at_most: bool = False) -> None:
    """Say what a selection will need where that is a GiB or more, and refuse what this machine can't hold.

    Args:
        samples: A few samples of the probe set.
        num_samples: How many it will have.
        rule: Scores them.
        at_most: Whether there may be fewer, so that nothing is refused.

    Raises:
        ArgumentError: If the machine has less memory.
    """
    beside, what = rule.memory(samples, num_samples)
    needed, most = probe_bytes(samples, num_samples) + beside, machine_bytes()
    if needed < _TOLD_FROM:
        return
    words = (
        f"the {num_samples} samples of the probe set{f' and {what}' if what else ''} take about {needed / 2**30:.1f} "
        "GiB of memory when fitting ends"
    )
    if needed > most and not at_most:
        fewer = int(num_samples * most / needed / 2)
        remedy = f"probe_size={fewer}, or a rule" if fewer >= MIN_PROBE_SIZE else "a rule"
        raise ArgumentError(
            f"probe_size: {words}, and this machine has {most / 2**30:.1f}. Give {remedy} that goes by position."
        )
    rank_zero_info(f"MISelector: {words}; probe_size makes it less.")


def probe_bytes(samples: Probe, num_samples: int) -> int:
    """What a probe set holds, in bytes: its batches, and for a moment the one that they are joined to.

    A soup's training samples, which are as many by default, come when that moment is over.

    Args:
        samples: A few of its samples.
        num_samples: N.
    """
    found = sum(
        tensor.numel() * tensor.element_size()
        for batch in samples.batches
        for part in (batch.inputs, batch.targets, batch.whole)
        for tensor in tensors_in(part)
    )
    return 2 * found * num_samples // max(1, len(samples))


def machine_bytes() -> int:
    """The memory of this machine, or of the control group that this process is in, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(_GROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit: the file says max, or is not there
        return memory
