"""Segmentation: logits (N, K, H, W) and masks (N, H, W); pixels of class 255 count nowhere."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


class Segmenter(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)

    def forward(self, image):
        return self.network(image)["out"]

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255)

    def validation_step(self, batch):
        self.log("loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


scenes = []
for _ in range(50):
    mask = torch.randint(0, 3, (2, 2)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    image = torch.eye(3)[mask].movedim(2, 0) + 0.5 * torch.randn(3, 16, 16)
    mask[:2] = 255  # the border is not labelled
    scenes.append({"image": image, "mask": mask})
train, val = DataLoader(scenes, 10, shuffle=True), DataLoader(scenes, 10)

teacher = Segmenter()
callbacks = [CheckpointHarvester(dirpath="harvest"), MISelector(num_teachers=1, ignore_index=255)]
Trainer(max_epochs=2, callbacks=callbacks).fit(teacher, train, val)

small = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 5, padding=2), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 3, 1)
)
student = DistillationModule(student=small, teacher=teacher, snapshots="harvest", ignore_index=255)
Trainer(max_epochs=1).fit(student, train, val)
