"""Lending a module out to other weights, and getting it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_ckptkd.tasks.alone import alone


@contextmanager
def borrowed(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Lend a module out, to run alone, and give it back with the weights, modes and device that it had."""
    first = next(iter(module.parameters()), None)
    home = torch.device("cpu") if first is None else first.device
    weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
    modes = [(child, child.training) for child in module.modules()]
    module.to(device)
    try:
        with (
            alone(module),
            torch.compiler.set_stance("force_eager"),
        ):  # compiled code does not see hooks that came after it
            yield
    finally:
        module.to(home)
        with torch.no_grad():
            for name, value in module.state_dict().items():
                value.copy_(weights[name])
        for child, mode in modes:
            child.training = mode
