"""A few samples are tried before a cache is filled: whether cached logits of such data and teachers can be true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.apart import CollateApart
from lightning_ckptkd.teachers.views import Views
from lightning_ckptkd.trainer.seeding import keep_random_state

TRIED = 16  # items, from the first to the last
_TOLERANCE = 2**-10  # of the largest logit: fp16's precision; in fp32, sums depend on a batch's size by less
_STEPS = 4  # of the type that the teachers compute in, where that is coarser


@torch.no_grad()
def try_samples(
    views: Views,
    teachers: Callable[[Batch], Tensor],
    read: Callable[[Any], Batch],
    collate_fn: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> None:
    """Draw 16 items twice, and run the teachers on them together and each by itself.

    Args:
        views: The items.
        teachers: Gives logits (M, N, ...) of a batch on ``device``.
        read: Unpacks a collated batch.
        collate_fn: The training dataloader's.
        batch_size: Samples a batch, at most.
        device: Where the teachers are.

    Raises:
        ArgumentError: If an item is another one when it is drawn again, logits differ in shape from sample to sample,
            or they depend on the batch's other samples by more than a 1024th of the largest (or the precision that
            teachers compute in).
    """
    count = min(TRIED, len(views))
    items = sorted({place * (len(views) - 1) // max(1, count - 1) for place in range(count)})
    drawn = views.__getitems__(items * 2)
    for first, second in zip(drawn, drawn[count:], strict=False):
        if first.checksum != second.checksum:
            sample, view = divmod(first.item, views.views)
            raise ArgumentError(
                f"cache: sample {sample} (view {view}) is another one each time it is drawn, as where a transform has "
                "a generator of its own, which no seed of the cache reaches. Use Python's, NumPy's or torch's global "
                "generator, or train without cache=."
            )
    collate = CollateApart(collate_fn)

    def run(places: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        for piece in places:
            for batch in collate([drawn[place] for place in piece]):
                logits = teachers(read(batch.batch).to(device)).cpu()
                if logits.shape[1] != len(batch.items):
                    return  # which the filling names
                yield from zip(batch.items.tolist(), logits.unbind(1), strict=False)

    with keep_random_state():
        together = dict(run(_pieces(range(count), max(1, batch_size))))
        _check_shapes(together)
        # each beside itself: alone, but for networks that squeeze a batch of one
        others = list(run([(place, place) for place in range(count)])) if batch_size > 1 else []
    for item, logits in others:
        _compare(item // views.views, together[item], logits)


def _pieces(places: Sequence[int], size: int) -> list[Sequence[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _check_shapes(logits: dict[int, Tensor]) -> None:
    shapes = {tuple(found.shape[1:]): item for item, found in logits.items()}
    if len(shapes) > 1:
        (one, first), (other, second), *_ = shapes.items()
        raise ArgumentError(ragged(one, f"item {first}", other, f"item {second}"))


def ragged(one: tuple[int, ...], where: str, other: tuple[int, ...], elsewhere: str) -> str:
    """The message where logits of samples differ in shape."""
    return (
        f"cache: the teachers' logits on a sample have the shape {one} for {where} and {other} for {elsewhere}, and a "
        "cache holds those of one shape. Pad samples to one length in the dataset, or train with live teachers: leave "
        "cache= out."
    )


def _compare(sample: int, one: Tensor, other: Tensor) -> None:
    if not (one.isfinite().all() and other.isfinite().all()):
        return  # which the filling names
    tolerance = _TOLERANCE
    if one.dtype in (torch.bfloat16, torch.float16):
        tolerance = max(tolerance, _STEPS * torch.finfo(one.dtype).eps)
    largest = max(1.0, float(one.abs().max()))
    difference = float((one.float() - other.float()).abs().max())
    if difference > tolerance * largest:
        raise ArgumentError(
            f"cache: the teachers' logits on sample {sample} depend on which samples share its batch: they differ by "
            f"{difference:.3g}, and the largest is {largest:.3g}. Attention or a mean over the batch does that. Train "
            "with live teachers: leave cache= out."
        )
