"""Two processes under DDP: nothing changes but the Trainer.

Rank 0 writes the harvest, both ranks score the snapshots between them, and each has its own copy of the teachers. On a
machine with GPUs leave accelerator and the number of devices to Lightning. Run it as a script: Lightning starts the
second process by running it again. Needs scikit-learn for the data.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


class Digits(LightningModule):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch):
        images, labels = batch
        self.log("acc", (self(images).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def main():
    data = load_digits()
    samples = TensorDataset(torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target))
    train = DataLoader(torch.utils.data.Subset(samples, range(1200)), 50, shuffle=True)
    val = DataLoader(torch.utils.data.Subset(samples, range(1200, 1600)), 50)
    both = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}

    teacher = Digits(width=128)
    callbacks = [CheckpointHarvester(dirpath="harvest"), MISelector(num_teachers=2)]
    Trainer(max_epochs=3, callbacks=callbacks, **both).fit(teacher, train, val)

    student = DistillationModule(student=Digits(width=8), teacher=teacher, snapshots="harvest")
    Trainer(max_epochs=1, **both).fit(student, train, val)


if __name__ == "__main__":
    main()
