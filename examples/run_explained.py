"""The picture of a run, explained: what selection.png shows, read from selection.json line by line.

A point of the picture's left half is a snapshot: how much its features F tell of the input X, I(X;F), and of the label
Y, I(Y;F), in nats. Training goes from epoch to epoch along the line. The right half has both terms, normalised, and
the accuracy over the epochs; the chosen ones are marked. Needs scikit-learn for the data.
"""

import json
import math
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import CheckpointHarvester, MISelector


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch):
        images, labels = batch
        self.log("acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


seed_everything(0)
data = load_digits()
samples = TensorDataset(torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target))
train = DataLoader(torch.utils.data.Subset(samples, range(1000)), 50, shuffle=True)
val = DataLoader(torch.utils.data.Subset(samples, range(1000, 1797)), 100)
Trainer(max_epochs=6, callbacks=[CheckpointHarvester(dirpath="harvest"), MISelector()]).fit(Digits(), train, val)

found = json.loads(Path("harvest", "selection.json").read_text())
most = math.log(10)
soup = found["soup"].get("taken", False)  # one network, the mean of its members, or snapshots as they are
teaching = [member["file"] for member in found["soup"]["members"]] if soup else found["chosen"]
print(f"\nharvest/selection.png, read aloud. I(Y;F) can't be more than H(Y), about ln 10 = {most:.2f} nats.")
for snapshot in found["snapshots"]:
    tells, of_input = snapshot["label_information"], snapshot["input_information"]
    print(
        f"epoch {snapshot['epoch']}: {snapshot['accuracy']:.0%} right; tells {tells:.2f} +- "
        f"{snapshot['label_error']:.2f} nats of the label, {tells / most:.0%} of all there is, and {of_input:.0f} of "
        f"the input; score {snapshot['score']:.3f} +- {snapshot['score_error']:.3f}, rank {snapshot['rank']}"
        + ((" <- in the soup" if soup else " <- teaches") if snapshot["file"] in teaching else "")
    )
print("Scores whose difference is within its own standard error count as equal; the higher one wins all the same.")
