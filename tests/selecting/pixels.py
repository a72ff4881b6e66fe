"""A task of several rows a sample, as a user would write it: which of two classes each pixel is of."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd import ArgumentError, SnapshotStore
from lightning_ckptkd.tasks.base import Task
from tests.projects import digits

IGNORED = 255


class Pixels(Task):
    """Outputs (N, K, H, W), targets (N, H, W)."""

    name: ClassVar[str] = "pixels"

    def __init__(self, ignore_index: int = IGNORED) -> None:
        super().__init__(ignore_index)

    def flatten(self, output: Tensor, lead: int = 0) -> Tensor:
        return output.movedim(lead + 1, -1).flatten(lead, -2)

    def flatten_targets(self, targets: Tensor) -> Tensor:
        return targets.flatten()

    def check(self, output: Tensor, targets: Tensor, model: str) -> None:
        if output.dim() != 4 or output.shape[0] != targets.shape[0] or output.shape[2:] != targets.shape[1:]:
            raise ArgumentError(f"{model}: {tuple(output.shape)} and {tuple(targets.shape)} do not meet.")

    def kept(self, targets: Tensor) -> Tensor | None:
        return (targets != self.ignore_index).nonzero().flatten()

    def samples(self, targets: Tensor) -> Tensor:
        return torch.arange(len(targets)).repeat_interleave(targets[0].numel())


class Segmenter(nn.Module):
    """Finds the dark pixels of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)))


def masks(start: int, stop: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Digits, enlarged, and their ink; the first rows of each are ignored, the more the later the digit."""
    images, _ = digits(start, stop).tensors
    images = F.interpolate(images, size=side)
    targets = (images[:, 0] > 0.4).long()
    for index in range(len(targets)):
        targets[index, : index % side] = IGNORED
    return images, targets


def write_harvest(folder: str, count: int = 3) -> list[Segmenter]:
    """Snapshots of a segmenter that is trained a little, and the networks as they were."""
    torch.manual_seed(0)
    network, found = Segmenter(), []
    images, targets = masks(0, 100)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    with SnapshotStore.create(folder, "run", {}) as store:
        for epoch in range(count):
            for _ in range(5):
                loss = F.cross_entropy(network(images), targets, ignore_index=IGNORED)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            store.commit(network.state_dict(), epoch=epoch, global_step=5 * (epoch + 1))
            copy = Segmenter()
            copy.load_state_dict(network.state_dict())
            found.append(copy.eval())
    return found
