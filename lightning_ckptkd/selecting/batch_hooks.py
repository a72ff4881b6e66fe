"""The hooks that batches pass on their way to the networks that are scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_ckptkd.tasks.transfer import BatchTransfer


class HookedBatches:
    """Takes batches through the hooks of a module and its DataModule, on the device where the module is by then.

    Args:
        module: What was trained, whole; the hooks of a part of it that is harvested are not asked.
        datamodule: Its data; None where there is no DataModule.

    Attributes:
        hooks: Names of the hooks that somebody overrides, and by whom.
    """

    def __init__(self, module: nn.Module, datamodule: Any) -> None:
        self._module, self._transfer = module, BatchTransfer(module, datamodule)
        self.hooks = self._transfer.hooks

    def __call__(self, batch: Any) -> Any:
        """The batch as a ``validation_step`` would get it; where nobody overrides a hook, as the loader gave it.

        Raises:
            ArgumentError: If a hook asks more of a Trainer than there is without one.
        """
        if not self.hooks:  # it is moved when it is run
            return batch
        device = next((parameter.device for parameter in self._module.parameters()), torch.device("cpu"))
        return self._transfer(batch, device)
