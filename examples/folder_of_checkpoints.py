"""A folder of .ckpt files that you have already: choose the teachers among them, and distil a student of frozen ones.

No retraining: the weights are taken out of the files, and no code in them is run. The same from a shell:
`ckptkd harvest checkpoints`, then `ckptkd select snapshots --model my.Net --data my.Data`. Needs scikit-learn for the
data.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import DistillationModule, MISelector, harvest_checkpoints


class Digits(LightningModule):
    def __init__(self, width):
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
        )

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


data = load_digits()
samples = TensorDataset(torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target))
train = DataLoader(torch.utils.data.Subset(samples, range(1200)), 100, shuffle=True)
val = DataLoader(torch.utils.data.Subset(samples, range(1200, 1797)), 100)

# What you have: a training that was over long ago, and its checkpoints.
keep_all = ModelCheckpoint(dirpath="checkpoints", filename="{epoch}", save_top_k=-1)
Trainer(max_epochs=4, callbacks=[keep_all]).fit(Digits(width=128), train)

# What you do with them. The teacher here is a skeleton; its weights are those of the files.
harvest_checkpoints("checkpoints", "harvest")
selection = MISelector(num_teachers=2).select("harvest", Digits(width=128), val)
print("chosen:", ", ".join(selection.chosen))

student = DistillationModule(student=Digits(width=8).network, teacher=Digits(width=128), snapshots="harvest")
Trainer(max_epochs=2).fit(student, train, val)
assert not any(name.startswith("teacher") for name, _ in student.named_parameters())  # frozen, and no part of it
