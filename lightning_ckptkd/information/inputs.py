"""X for the linear-Gaussian decoder: images pooled, tokens counted, and projected to their principal components."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.shapes import Float, Int, Num, Shaped

_SIDE = 16
_VARIANCE_FLOOR = 1e-6
_BINS = 512
_BLOCK = 2**22  # numbers of a wide X that are looked at together


def pool_inputs(x: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N D"]:
    """Inputs as vectors: images larger than 16 x 16 are halved until they are not, everything is flattened.

    Args:
        x: Inputs, shape (N, C, H, W) or (N, ...).

    Returns:
        Vectors, shape (N, D).
    """
    x = x.float()
    if x.dim() == 4:
        height, width = x.shape[-2:]
        while max(height, width) > _SIDE:
            height, width = max(1, height // 2), max(1, width // 2)
        x = F.adaptive_avg_pool2d(x, (height, width))
    return x.flatten(1)


def token_bags(
    ids: Int[Tensor, " R"], samples: Int[Tensor, " R"], num_samples: int, num_bins: int = _BINS
) -> Float[Tensor, "{num_samples} {num_bins}"]:
    """How often each token is in each sample, as shares of the sample's tokens.

    A token's bin is its rank by frequency among all tokens (of equal ones the first to appear comes first), modulo
    the number of bins: the most frequent have bins of their own and rarer ones share them. Nothing depends on the
    ids but which of them are equal, so that another numbering of the vocabulary gives the very same bags.

    Args:
        ids: Of all tokens, sample after sample, a row each, shape (R,), int64.
        samples: The sample of each, shape (R,).
        num_samples: N.
        num_bins: D.

    Returns:
        Shape (N, D), float64; a sample without tokens has zeros.
    """
    values, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    places = torch.arange(len(ids), device=ids.device)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, inverse, places, "amin")
    order = first.argsort()
    order = order[counts[order].argsort(descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=ids.device)
    bags = torch.zeros(num_samples * num_bins, dtype=torch.float64, device=ids.device)
    ones = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
    bags = bags.index_add_(0, samples * num_bins + ranks[inverse] % num_bins, ones).view(num_samples, num_bins)
    return bags / bags.sum(1, keepdim=True).clamp_min(1)


def principal_components(x: Num[Tensor, "N D"], num_components: int) -> Float[Tensor, "N D_kept"]:
    """Scores of the leading principal components, in float64.

    Components with less than a millionth of the first one's variance (pixels that never change) are left out. Vectors
    with more numbers than there are samples go by the inner products of the samples, N x N instead of D x D: the same
    scores up to their signs, in the memory of a few matrices of min(N, D) squared and without a copy of ``x``.

    Args:
        x: Vectors, shape (N, D).
        num_components: The largest number that is kept.

    Returns:
        Scores, shape (N, D_kept) with D_kept <= num_components.
    """
    by_samples = x.shape[1] > len(x)
    if not by_samples:
        x = x.double()
        x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(_inner_products(x) / len(x) if by_samples else x.T @ x / len(x))
    kept = int((values > _VARIANCE_FLOOR * values[-1]).sum())
    leading: Tensor = vectors.flip(1)[:, : min(num_components, kept)]
    if by_samples:
        scores: Tensor = leading * (len(x) * values.flip(0)[: leading.shape[1]]).sqrt()
        return scores
    return x @ leading


def component_bytes(num_samples: int, dim: int) -> int:
    """What :func:`principal_components` needs beside ``x`` itself, in bytes, at most.

    Args:
        num_samples: N.
        dim: D.
    """
    smaller = min(num_samples, dim)
    whole = 2 * num_samples * dim if dim <= num_samples else 2 * _BLOCK
    return 8 * (whole + 4 * smaller**2)


def _inner_products(x: Num[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Of the centred rows of a wide (N, D), a block of columns at a time; shape (N, N), float64."""
    products = x.new_zeros(len(x), len(x), dtype=torch.float64)
    for columns in torch.split(x, max(1, _BLOCK // len(x)), 1):
        block = columns.double()
        block = block - block.mean(0)
        products.addmm_(block, block.T)
    return products


def within_classes(values: Num[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """Values less the mean of their class: what is left to tell once the label is known.

    The information between two such sets of values is that given the label, I(.;.|Y), if all classes have the same
    covariances.

    Args:
        values: Shape (N, D).
        labels: Class indices, shape (N,).

    Returns:
        Shape (N, D), float64.
    """
    values = values.double()
    counts = torch.bincount(labels).clamp_min(1)
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, labels, values)
    return values - (sums / counts[:, None])[labels]
