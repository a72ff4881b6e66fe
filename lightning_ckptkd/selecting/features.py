"""What a snapshot makes of the probe samples: the features of a layer, and the logits with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.information.by_sample import sum_by_sample
from lightning_ckptkd.selecting.layers import Layers, forward, input_of, placed
from lightning_ckptkd.selecting.pooling import Pooling, without_last
from lightning_ckptkd.selecting.rows import Part, ProbeRows
from lightning_ckptkd.tasks.outputs import get_output


@dataclass(frozen=True)
class Features:
    """What one snapshot makes of the probe samples; on the CPU.

    Attributes:
        pooled: A vector for each sample, shape (N, D); None where no layer was asked for.
        spatial: A feature map for each sample, shape (N, C, H, W); None where none was asked for.
        logits: Of the rows that are kept, shape (R, K); None where the network gives none.
        hits: How many rows of each sample it gets right, of all that have a target, shape (N,), float64; None where
            there are no logits, or a prediction is not right or wrong.
        finite: Whether all of it is, the logits that are not kept included.
    """

    pooled: Tensor | None
    spatial: Tensor | None
    logits: Tensor | None
    hits: Tensor | None
    finite: bool

    def __len__(self) -> int:
        """N, where each sample is a row."""
        return next((len(tensor) for tensor in self.tensors() if tensor is not None), 0)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that it holds."""
        return self.pooled, self.spatial, self.logits, self.hits

    def taken(self, places: Tensor) -> Features:
        """Those of some samples, each of which is a row."""
        pooled, spatial, logits, hits = (None if one is None else one[places] for one in self.tensors())
        return Features(pooled, spatial, logits, hits, self.finite)


def joined(first: Features, second: Features) -> Features:
    """The features of more samples, each of which is a row."""
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    both = (None if one is None or other is None else torch.cat([one, other]) for one, other in pairs)
    pooled, spatial, logits, hits = both
    return Features(pooled, spatial, logits, hits, first.finite and second.finite)


def extract_features(
    module: nn.Module,
    rows: ProbeRows,
    layers: Layers,
    logits_key: str | int | None = None,
    argument: str = "logits_key",
) -> Features:
    """Run a network over the probe samples and collect F.

    Args:
        module: The network, in eval mode.
        rows: The samples, laid out.
        layers: Where F is read.
        logits_key: Where the logits are in the network's output.
        argument: What the user gives that as, for messages.

    Returns:
        Feature maps and sequences are averaged over positions for ``pooled``, as :class:`.pooling.Pooling` does.

    Raises:
        ArgumentError: If the layer's output is no tensor, of a shape that can't be pooled, or not of each sample; or
            the logits are not the task's.
    """
    pooled = Pooling(layers.pooled or "")
    spatial: list[Tensor] = []
    logits: list[_PartLogits] = []
    caught: dict[str, Any] = {}

    def catch_pooled(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        caught["pooled"] = input_of(args, kwargs) if layers.pooled_is_input else output

    def catch_spatial(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught["spatial"] = output

    handles = []
    if layers.pooled is not None:
        head = module.get_submodule(layers.pooled)
        handles.append(head.register_forward_hook(catch_pooled, with_kwargs=True))
    if layers.spatial is not None:
        handles.append(module.get_submodule(layers.spatial).register_forward_hook(catch_spatial))
    name = type(module).__name__
    try:
        for part in rows.parts:
            output = forward(module, placed(module, part.batch))
            if layers.pooled is not None:
                pooled.add(caught["pooled"], part.batch, _is_recurrent(module, layers))
            if layers.spatial is not None:
                spatial.append(caught["spatial"].float().cpu())
            if layers.gives_logits:
                found = get_output(output, logits_key, name, argument)
                rows.task.check(found, part.batch.targets, name)
                logits.append(_read_logits(rows, part, found))
        if pooled.is_open:
            less = without_last(placed(module, rows.parts[0].batch))
            if less is not None:
                forward(module, less)
                pooled.look(caught["pooled"], len(rows.parts[0].batch) - 1)
    finally:
        for handle in handles:
            handle.remove()
    vectors = pooled.result() if layers.pooled is not None else None
    maps = torch.cat(spatial) if spatial else None
    kept = torch.cat([part.kept for part in logits]) if logits else None
    hits = [part.hits for part in logits if part.hits is not None]
    finite = all(bool(torch.isfinite(found).all()) for found in (vectors, maps, kept) if found is not None)
    return Features(
        vectors,
        maps,
        kept,
        torch.stack(hits).sum(0) if hits else None,
        finite and all(part.finite for part in logits),
    )


def find_unusable(features: Features) -> str | None:
    """Why features can't be scored: not finite, or the same for each sample; None where they can."""
    if not features.finite:
        return "its features or logits on the probe set are not finite"
    return "its features are the same for each probe sample" if constant(features) else None


def constant(features: Features) -> bool:
    """Whether features are the same for each sample."""
    vectors = features.logits if features.pooled is None else features.pooled
    return vectors is not None and bool((vectors == vectors[:1]).all())


@dataclass(frozen=True)
class _PartLogits:
    kept: Tensor
    hits: Tensor | None
    finite: bool


def _read_logits(rows: ProbeRows, part: Part, output: Tensor) -> _PartLogits:
    """The rows that are kept of one part's output, and what is counted over all of them."""
    flat = rows.task.flatten(output).float()
    hits = rows.task.hits(flat, part.targets.to(flat.device))
    if hits is not None:
        hits = hits.cpu() if part.valid is None else hits.cpu() & part.valid
        hits = sum_by_sample(hits.double(), part.samples, len(rows))
    if part.kept is None:
        return _PartLogits(flat.cpu(), hits, finite=True)  # it is looked at with all others
    return _PartLogits(flat[part.kept.to(flat.device)].cpu(), hits, bool(torch.isfinite(flat).all()))


def _is_recurrent(module: nn.Module, layers: Layers) -> bool:
    return not layers.pooled_is_input and isinstance(module.get_submodule(layers.pooled or ""), nn.RNNBase)
