"""Labels that are wrong: the last snapshot has learnt them by heart, an earlier one has not.

Four in ten training labels of scikit-learn's digits are wrong, and so are those that the snapshots are scored on. Two
students, of the last snapshot and of what was chosen, are then told apart by clean labels. Here both training and
network are tiny, and one seed says little; docs/results.md has five of them on longer trainings.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


def network(width):
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network(width=512)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


seed_everything(0)
data = load_digits()
images, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
wrong = (labels + torch.randint(1, 10, labels.shape)) % 10
noisy = torch.where(torch.rand(len(labels)) < 0.4, wrong, labels)
train = DataLoader(TensorDataset(images[:900], noisy[:900]), 50, shuffle=True)
val = DataLoader(TensorDataset(images[900:1200], noisy[900:1200]), 100)
clean = DataLoader(TensorDataset(images[1200:], labels[1200:]), 200)

teacher = Digits()
callbacks = [CheckpointHarvester(dirpath="harvest"), MISelector(probe=val)]
Trainer(max_epochs=20, callbacks=callbacks).fit(teacher, train)

for choice in ("full", "selected"):
    seed_everything(0)
    student = DistillationModule(network(width=32), teacher, "harvest", choice=choice, alpha=0.0)
    trainer = Trainer(max_epochs=10, enable_checkpointing=False)
    trainer.fit(student, train, val)
    (found,) = trainer.test(student, clean, verbose=False)
    print(f"student of the {choice} teacher: {found['test_acc']:.1%} of the clean labels")
