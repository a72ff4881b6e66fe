"""Folding BatchNorm into the layer before it: one pass over the activations less, for a frozen network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def fold_batch_norms(module: nn.Module, run: Callable[[], Any]) -> int:
    """Fold each BatchNorm whose input is a convolution's or linear layer's output into that layer, in place.

    Which ones these are is seen in one forward pass, so that the network need not be traceable. What a hook can't see,
    such as a sum of a convolution's output with its BatchNorm's, makes the result wrong: compare it with the module's
    own before you use it.

    Args:
        module: A network in eval mode; its forward hooks stay.
        run: Makes one forward pass of it.

    Returns:
        How many were folded.
    """
    pairs = find_pairs(module, run)
    fold_pairs(module, pairs)
    return len(pairs)


def fold_pairs(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Fold in place what :func:`find_pairs` found in this network, or in one that it is a copy of."""
    for layer_name, norm_name in pairs:
        _fold(module.get_submodule(layer_name), module.get_submodule(norm_name))
        parent, _, name = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())


def find_pairs(module: nn.Module, run: Callable[[], Any]) -> list[tuple[str, str]]:
    """Names of layers and of the BatchNorms that alone see their outputs, each run once.

    Args:
        module: A network in eval mode; it is left as it is.
        run: Makes one forward pass of it.
    """
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # a tensor that is gone would lend its id to the next one
    users: dict[str, list[str]] = {}
    runs: Counter[str] = Counter()
    parts = list(module.named_modules(remove_duplicate=False))
    shared = Counter(id(child) for _, child in parts)

    def before(name: str, args: tuple[Any, ...]) -> None:
        runs[name] += 1
        for argument in args:
            if id(argument) in made:
                users.setdefault(made[id(argument)], []).append(name)

    def after(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = name
            kept.append(output)

    handles = []
    for name, child in parts:
        if any(True for _ in child.children()):
            continue
        handles.append(child.register_forward_pre_hook(lambda _, args, name=name: before(name, args)))
        if isinstance(child, (_Conv, nn.Linear)):
            handles.append(child.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    named = dict(parts)
    return [
        (layer, names[0])
        for layer, names in users.items()
        if len(names) == 1
        and all(runs[name] == 1 and shared[id(named[name])] == 1 for name in (layer, names[0]))
        and _can_fold(named[layer], named[names[0]])
    ]


def _can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    # a parametrised layer is of a class of its own, and a pruned one makes its weight anew: neither can be set
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) and "weight" in layer._parameters
    if not plain or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    return not isinstance(layer, nn.Linear) or isinstance(norm, nn.BatchNorm1d)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, (_Conv, nn.Linear)) and isinstance(norm, _BatchNorm)
    fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    tensors = (layer.weight, layer.bias, norm.running_mean, norm.running_var)
    doubles = [None if tensor is None else tensor.detach().double() for tensor in tensors]
    affine = [None if tensor is None else tensor.detach().double() for tensor in (norm.weight, norm.bias)]
    weight, bias = fuse(*doubles, norm.eps, *affine)
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
