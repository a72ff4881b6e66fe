"""What a choice says of its soup, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 12  # names


def describe_soup(soup: Mapping[str, Any]) -> str:
    """One line of a choice's ``soup``: what it is made of and what that gains, or why it was not taken."""
    if not soup["taken"]:
        return f"soup: {soup['why']}, so the best snapshots teach as without one"
    epochs = _listed(sorted(member["epoch"] for member in soup["members"]))
    line = (
        f"soup ({soup['kind']}): one network, the mean of epochs {epochs}, tells {soup['information']:.3f} ± "
        f"{soup['error']:.3f} of held-out labels, {soup['gain']:.3f} ± {soup['gain_error']:.3f} more than the best of "
        f"them alone"
    )
    statistics = soup["batch_norm"]
    if statistics is not None:
        line += f"; BatchNorm statistics of {statistics['samples']} {statistics['of']} samples"
    kept = [name for name in soup["kept"] if name.rpartition(".")[2] != "num_batches_tracked"]  # told by the statistics
    if kept:
        line += f"; without a mean and those of the best: {_listed(kept)}"
    return line


def _listed(items: list[Any]) -> str:
    return ", ".join(map(str, items[:_SHOWN])) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
