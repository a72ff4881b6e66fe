"""Doing something on one rank or on all so that an error on one ends them all with its message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store  # the one way to it; public in all but name

from lightning_ckptkd.errors import CkptKDError

T = TypeVar("T")

_meetings = itertools.count()  # the same on all ranks, since each takes part in every meeting


def current_rank() -> int:
    """This process's rank; 0 where there is only one."""
    return dist.get_rank() if _is_distributed() else 0


def num_ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _is_distributed() else 1


def on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Run ``work`` on every rank and give each rank all results, in the order of ranks.

    Every rank must call it: it is one collective. An error on one rank is raised on all of them. A rank that dies or
    hangs ends the others when the backend notices: gloo at once for a death, and all backends at the process group's
    time limit.

    Raises:
        CkptKDError: If a rank failed, died or hangs; names the rank.
    """
    if not _is_distributed():
        return [work()]
    outcome: tuple[T | None, str | None, type[CkptKDError]]
    own: Exception | None = None
    try:
        outcome = work(), None, CkptKDError
    except Exception as error:  # whatever it is, the other ranks wait for this one
        own = error
        message = str(error) if isinstance(error, CkptKDError) else f"{type(error).__name__}: {error}"
        outcome = None, message, type(error) if isinstance(error, CkptKDError) else CkptKDError
    outcomes = _gather(outcome)
    for rank, (_, message, kind) in enumerate(outcomes):
        if message is not None:
            raise kind(f"rank {rank} failed, so all ranks stop: {message}") from own
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


def _gather(outcome: Any) -> list[Any]:
    """What each rank has to say, in the order of ranks.

    Raises:
        CkptKDError: If ranks did not come, or were lost; names them.
    """
    meeting = next(_meetings)
    outcomes: list[Any] = [None] * num_ranks()
    try:
        _get_default_store().set(_place(meeting, current_rank()), "here")
        dist.all_gather_object(outcomes, outcome)
    except RuntimeError as error:  # torch's kinds of network and time-limit errors
        raise CkptKDError(f"{_who_is_missing(meeting)}, so rank {current_rank()} stops: {error}") from error
    with suppress(RuntimeError):  # all have come to this meeting, so nobody asks after the one before
        _get_default_store().delete_key(_place(meeting - 1, current_rank()))
    return outcomes


def _place(meeting: int, rank: int) -> str:
    return f"lightning_ckptkd/meeting_{meeting}/rank_{rank}"


def _who_is_missing(meeting: int) -> str:
    others = [rank for rank in range(num_ranks()) if rank != current_rank()]
    try:
        missing = [rank for rank in others if not _get_default_store().check([_place(meeting, rank)])]
    except RuntimeError:
        return "rank 0, through which the ranks find each other, is gone"
    if not missing:
        return f"the connection to {_name(others)} broke"
    return f"{_name(missing)} died or hangs"


def _name(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
