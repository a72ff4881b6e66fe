"""Regression on a table: outputs (N, 1), targets that are numbers.

The student learns from the teachers' mean, and is told by RMSE and R². Needs scikit-learn for the data.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_diabetes
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


class Regressor(LightningModule):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(10, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(width, 1)

    def forward(self, features):
        return self.head(self.layers(features))

    def training_step(self, batch):
        features, target = batch
        return torch.nn.functional.mse_loss(self(features), target)

    def validation_step(self, batch):
        self.log("mse", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


features, target = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
features = (features - features.mean(0)) / features.std(0)
target = ((target - target.mean()) / target.std())[:, None]
train = DataLoader(TensorDataset(features[:300], target[:300]), 50, shuffle=True)
val = DataLoader(TensorDataset(features[300:], target[300:]), 50)

teacher = Regressor(width=64)
callbacks = [CheckpointHarvester(dirpath="harvest"), MISelector(num_teachers=2)]
Trainer(max_epochs=5, callbacks=callbacks).fit(teacher, train, val)

student = DistillationModule(student=Regressor(width=8), teacher=teacher, snapshots="harvest")
Trainer(max_epochs=3).fit(student, train, val)
