"""Networks of one architecture as one network: their weights are stacked, and one call runs all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from typing_extensions import override

from lightning_ckptkd.trainer.seeding import RandomState

Work = Callable[[nn.Module], Any]

REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, LookupError, Warning)
MOST_NUMBERS = 3 * 2**14  # that a layer gives for a batch, on average, up to which stacked ones were faster on a CPU


class NetworkStack:
    """S networks that run as one.

    Args:
        network: The architecture; its own weights are not used, nor changed.
        weights: Name to stacked parameter or buffer, shape (S, ...). What is not named is the network's own.

    Attributes:
        weights: As given.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self._caller = _Caller(network)

    def run(self, work: Work) -> Any:
        """Do some work with each network.

        Args:
            work: Is given a network, and returns tensors. What it draws at random is the same for each.

        Returns:
            What it returns, stacked, shape (S, ...).

        Raises:
            RuntimeError: Or another of ``REFUSALS``, where a layer can't be stacked.
        """

        def one(weights: dict[str, Tensor]) -> Any:
            named = {f"{_Caller.PREFIX}{name}": value for name, value in weights.items()}
            return functional_call(self._caller, named, (work,))

        return vmap(one, randomness="same")(self.weights)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network by name, those that it keeps from its state dict among them."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def stack(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack what :func:`state_of` gives of each network."""
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}


def gives_little(network: nn.Module, run: Callable[[], object]) -> bool:
    """Whether the layers of a network give so few numbers that calling them is what takes the time.

    Args:
        network: Any.
        run: Makes one forward pass of it.
    """
    sizes: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else MOST_NUMBERS + 1)

    leaves = [child for child in network.modules() if not any(True for _ in child.children())]
    handles = [child.register_forward_hook(note) for child in leaves]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return bool(sizes) and sum(sizes) <= MOST_NUMBERS * len(sizes)


def are_close(some: Sequence[Tensor], others: Sequence[Tensor], tolerance: float) -> bool:
    """Whether tensors differ by no more than a share of the largest number of all; never where one is not finite."""
    if [one.shape for one in some] != [other.shape for other in others]:
        return False
    one, other = (torch.cat([tensor.detach().double().flatten() for tensor in part]) for part in (some, others))
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


class _Caller(nn.Module):
    """Lets a network be part of any work, which ``functional_call`` does for a ``forward`` alone."""

    PREFIX = "network."

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, work: Work) -> Any:
        return work(self.network)


def in_turn(count: int, device: torch.device | str, work: Callable[[int], Any]) -> list[Any]:
    """Do some work several times, each time from the same random state; the first one's is left behind.

    Args:
        count: How often.
        device: Whose generator counts besides the CPU's.
        work: Is given the place, from 0.

    Returns:
        What each gave.
    """
    if count == 1:
        return [work(0)]
    before = RandomState.of(device)
    found = [work(0)]
    after = RandomState.of(device)
    for place in range(1, count):
        before.restore()
        found.append(work(place))
    after.restore()
    return found
