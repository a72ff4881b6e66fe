from __future__ import annotations

from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.alone import alone, attach, detach, let_log

BOTH = pytest.mark.parametrize("pl", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])


def talking(pl: Any) -> Any:
    class Talking(pl.LightningModule):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor) -> Tensor:
            self.log("mean", x.mean())
            self.log_dict({"most": x.max()})
            return x + self.trainer.validating + self.trainer.global_step

    return Talking()


@BOTH
def test_modules_that_log_run_alone_and_are_given_back(pl: Any) -> None:
    module = talking(pl)
    network = nn.Sequential(nn.Identity(), module)
    with alone(network):
        assert torch.equal(network(torch.zeros(2)), torch.ones(2))
    assert module._trainer is None and not {"log", "log_dict"} & set(vars(module))
    own = module.log = lambda *_: None
    with alone(network), alone(module):
        network(torch.zeros(2))
    assert module.log is own and "log_dict" not in vars(module)
    trainer = module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with alone(network):
        assert torch.equal(network(torch.zeros(2)), torch.zeros(2))  # its own Trainer does not validate
    assert module.trainer is trainer


@BOTH
def test_modules_of_our_own(pl: Any) -> None:
    module = talking(pl)
    detach(module)
    assert torch.equal(module(torch.zeros(2)), torch.ones(2))
    with pytest.raises(
        ArgumentError, match=r"Talking asks in forward for self.trainer.max_epochs, and there is no Tra"
    ):
        _ = module.trainer.max_epochs
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    attach(module, trainer)
    assert module.trainer is trainer
    module(torch.zeros(2))
    let_log(module)
    assert not {"log", "log_dict"} & set(vars(module))
