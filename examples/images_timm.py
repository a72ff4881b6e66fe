"""An image project with timm: two callbacks for the teachers, one module for the student.

Any network of timm or torchvision, and batches (images, labels). Needs timm.
"""

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = timm.create_model("resnet10t", num_classes=3, in_chans=3)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch):
        images, labels = batch
        self.log("acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


labels = torch.arange(64) % 3
images = torch.randn(64, 3, 16, 16) + torch.eye(3)[labels][:, :, None, None]
train = DataLoader(TensorDataset(images, labels), 16, shuffle=True)
val = DataLoader(TensorDataset(images, labels), 16)

teacher = Classifier()
callbacks = [CheckpointHarvester(dirpath="harvest"), MISelector(num_teachers=2)]
Trainer(max_epochs=2, callbacks=callbacks).fit(teacher, train, val)

small = timm.create_model("resnet10t", num_classes=3, in_chans=3, channels=(8, 8, 16, 16))
Trainer(max_epochs=1).fit(DistillationModule(student=small, teacher=teacher, snapshots="harvest"), train, val)
