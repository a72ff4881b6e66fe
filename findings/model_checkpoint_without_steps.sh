#!/usr/bin/env bash
# Lightning 2.6.6, torch 2.14.1: where manual optimisation steps the optimiser itself, ModelCheckpoint(save_top_k=-1)
# saves nothing in a whole training, without a word.
#
#   Lightning's wrapper of the optimiser: weights moved, global_step 12, files: epoch=0.ckpt epoch=1.ckpt epoch=2.ckpt
#   the optimiser itself: weights moved, global_step 0, files: none; best_model_path ''
#
# self.optimizers(use_pl_optimizer=False) is documented, and so is that global_step counts the steps of the wrapper. A
# good guess is that the number is wrong and no more: with save_top_k=-1 and every_n_epochs=1 the callback is asked for a
# file each epoch, and epochs are counted. But it skips a save whose global_step is that of the last one, and "none yet"
# is 0 as well. The file's name does not matter: a training of days ends with an empty folder. save_last=True still
# writes one. (max_steps never ends such a training either.) Step the wrapper, or call trainer.save_checkpoint.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 lightning==2.6.6
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PY'
import os
import tempfile

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class ByHand(LightningModule):
    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.network, self.wrapped, self.automatic_optimization = nn.Linear(4, 1), wrapped, False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: list, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=self.wrapped)
        optimizer.zero_grad()
        self.manual_backward(self.network(batch[0]).square().mean())
        optimizer.step()


found = {}
for words, wrapped in (("Lightning's wrapper of the optimiser", True), ("the optimiser itself", False)):
    module = ByHand(wrapped)
    before = module.network.weight.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=3, accelerator="cpu", callbacks=[checkpoint], **quiet)
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(32, 4)), batch_size=8))
        files = " ".join(sorted(os.listdir(folder))) or f"none; best_model_path {checkpoint.best_model_path!r}"
    moved = "moved" if not torch.equal(before, module.network.weight) else "stayed"
    found[wrapped] = (moved, trainer.global_step, files)
    print(f"{words}: weights {moved}, global_step {trainer.global_step}, files: {files}")
if found[False] != ("moved", 0, "none; best_model_path ''"):
    raise SystemExit("ModelCheckpoint does otherwise now")
assert found[True] == ("moved", 12, "epoch=0.ckpt epoch=1.ckpt epoch=2.ckpt")
PY
