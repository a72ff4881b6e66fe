"""From what a layer gives to one vector a sample: which dimension counts samples, and which positions are padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.masks import real_positions
from lightning_ckptkd.tasks.batch import Batch, describe, map_tensors, tensors_in


class Pooling:
    """The outputs of a layer, batch after batch, averaged over positions.

    A feature map (N, C, H, W) is averaged over H and W, a sequence (N, L, D), or (L, N, D) as torch's recurrent layers
    and Transformers give without ``batch_first``, over those of L that are no padding by the batch's mask. Where N and
    L are the same number, another batch tells.

    Args:
        layer: Its name, for messages.
    """

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._dim: int | None = None  # which counts samples, of three
        self._pooled: list[Tensor | tuple[Tensor, Any]] = []  # the pair is one that could be read in two ways

    @property
    def is_open(self) -> bool:
        """Whether a batch could be read in two ways, and no other tells."""
        return self._dim is None and any(isinstance(part, tuple) for part in self._pooled)

    def add(self, features: Any, batch: Batch, recurrent: bool = False) -> None:
        """Take what the layer gave for a batch.

        Args:
            features: Shape (N, D), (N, C, H, W), (N, L, D) or (L, N, D).
            batch: Of N samples.
            recurrent: Whether the layer is one of torch's RNNs, of whose outputs the first is meant.

        Raises:
            ArgumentError: If that is no tensor, of a shape that can't be pooled, or not of each sample.
        """
        if recurrent and isinstance(features, tuple):
            features = features[0]
        if isinstance(features, PackedSequence):
            padded, lengths = pad_packed_sequence(features, batch_first=True)
            self._pooled.append(_mean(padded, torch.arange(padded.shape[1]) < lengths[:, None]))
            return
        if not isinstance(features, Tensor):
            raise ArgumentError(
                f"layer={self._layer!r} gives {describe(features)}; name a layer that gives one tensor."
            )
        if features.dim() not in (2, 3, 4):
            raise ArgumentError(
                f"layer={self._layer!r} gives the shape {tuple(features.shape)}; 2 to 4 dimensions can be used."
            )
        count = len(batch)
        if features.dim() == 3:
            self.look(features, count)
            if self._dim is None and features.shape[0] == features.shape[1] == count:
                self._pooled.append((features.float().cpu(), batch.inputs))
                return
        dim = self._dim or 0
        if (features.dim() != 3 and len(features) != count) or (features.dim() == 3 and features.shape[dim] != count):
            raise ArgumentError(
                f"layer={self._layer!r} gives the shape {tuple(features.shape)} for {count} samples; name a layer that "
                "gives one row for each of them."
            )
        if features.dim() == 3:
            self._pooled.append(self._over_positions(features.float().cpu(), batch.inputs))
        else:
            self._pooled.append((features if features.dim() == 2 else features.mean((2, 3))).float().cpu())

    def look(self, features: Any, count: int) -> None:
        """See from a batch of ``count`` samples which dimension counts them, where that was not known."""
        features = features[0] if isinstance(features, tuple) else features
        if self._dim is None and isinstance(features, Tensor) and features.dim() == 3:
            matches = [dim for dim in (0, 1) if features.shape[dim] == count]
            self._dim = matches[0] if len(matches) == 1 else None

    def result(self) -> Tensor:
        """All vectors, shape (N, D).

        Raises:
            ArgumentError: If it is not known which dimension counts samples.
        """
        if self.is_open:
            shape = next(tuple(part[0].shape) for part in self._pooled if isinstance(part, tuple))
            raise ArgumentError(
                f"layer={self._layer!r} gives the shape {shape} for {shape[0]} samples, so it is not known whether "
                "the first or the second dimension counts them. Give a probe= dataloader of another batch size."
            )
        parts = [self._over_positions(*part) if isinstance(part, tuple) else part for part in self._pooled]
        return torch.cat(parts)

    def _over_positions(self, features: Tensor, inputs: Any) -> Tensor:
        features = features if self._dim != 1 else features.transpose(0, 1)
        mask = real_positions(inputs, (features.shape[0], features.shape[1]))
        return features.mean(1) if mask is None else _mean(features, mask.cpu())


def without_last(batch: Batch) -> Batch | None:
    """The batch without its last sample; None where it can't be cut."""
    count = len(batch)
    tensors = tensors_in(batch.inputs)
    if count < 2 or batch.whole is not None or not tensors or any(len(t) != count for t in tensors if t.dim()):
        return None
    return Batch(map_tensors(batch.inputs, lambda tensor: tensor[:-1] if tensor.dim() else tensor), batch.targets[:-1])


def _mean(features: Tensor, real: Tensor) -> Tensor:
    """The mean of (N, L, D) over the positions (N, L) that are real; zeros where none is."""
    weights = real.to(features).unsqueeze(2)
    return (features.float().cpu() * weights.cpu()).sum(1) / weights.cpu().sum(1).clamp_min(1)
