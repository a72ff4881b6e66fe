"""Doing something on one rank or on all so that an error on one ends them all with its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from lightning_ckptkd.errors import CkptKDError

T = TypeVar("T")


def current_rank() -> int:
    """This process's rank; 0 where there is only one."""
    return dist.get_rank() if _is_distributed() else 0


def num_ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _is_distributed() else 1


def on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Run ``work`` on every rank and give each rank all results, in the order of ranks.

    Every rank must call it: it is one collective. An error on one rank is raised on all of them.

    Raises:
        CkptKDError: If another rank failed; names the rank. An error of this rank is raised as it is.
    """
    if not _is_distributed():
        return [work()]
    outcome: tuple[T | None, str | None, type[CkptKDError]]
    own: Exception | None = None
    try:
        outcome = work(), None, CkptKDError
    except Exception as error:  # whatever it is, the other ranks wait for this one
        own = error
        kind = type(error) if isinstance(error, CkptKDError) else CkptKDError
        outcome = None, f"{type(error).__name__}: {error}", kind
    outcomes: list[Any] = [None] * num_ranks()
    dist.all_gather_object(outcomes, outcome)
    if own is not None:
        raise own
    for rank, (_, message, kind) in enumerate(outcomes):
        if message is not None:
            raise kind(f"rank {rank} failed, so all ranks stop: {message}")
    return [result for result, _, _ in outcomes]


def on_each_rank(work: Callable[[], T]) -> T:
    """Run ``work`` on every rank and keep this rank's result to itself; errors as :func:`on_all_ranks`."""
    kept: list[T] = []
    on_all_ranks(lambda: kept.append(work()))
    return kept[0]


def on_rank_zero(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 alone and give each rank its result; one collective, errors as :func:`on_all_ranks`."""
    result: T = on_all_ranks(work if current_rank() == 0 else lambda: None)[0]  # type: ignore[assignment]
    return result


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
