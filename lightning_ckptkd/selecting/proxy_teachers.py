"""The candidates as teachers of proxy students: several sets of weights that one module runs with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_ckptkd.selecting.layers import forward, placed
from lightning_ckptkd.selecting.network_stack import state_of
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.outputs import get_output


class ProxyTeachers:
    """Teachers of one architecture, which share a module: weights are lent to it, not copied, while one of them runs.

    Args:
        module: The architecture, in eval mode.
        states: The weights of each, as :func:`.state_of` names them, where the module is.
        logits_key: Where the logits are in its output.
    """

    def __init__(self, module: nn.Module, states: Sequence[Mapping[str, Tensor]], logits_key: str | int | None) -> None:
        self._module, self._states, self._logits_key = module, states, logits_key
        self._tensors = state_of(module)

    def __len__(self) -> int:
        return len(self._states)

    def lend(self, place: int) -> None:
        """Let the module have the weights of one teacher."""
        for name, value in self._states[place].items():
            self._tensors[name].data = value

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the module its own weights back at the end of the block."""
        own = {name: tensor.data for name, tensor in self._tensors.items()}
        try:
            yield
        finally:
            for name, value in own.items():
                self._tensors[name].data = value

    def logits(self, batch: Batch, place: int) -> Tensor:
        """The output (N, ...) of one teacher for a batch on its device."""
        self.lend(place)
        output = forward(self._module, placed(self._module, batch))
        return get_output(output, self._logits_key, type(self._module).__name__)
