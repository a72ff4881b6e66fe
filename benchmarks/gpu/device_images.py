"""Images that stay on the device, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PADDING = 4


class DeviceImages:
    """Labelled images on a device, as bytes with their channels last.

    Args:
        images: Shape (N, side, side, 3), uint8.
        labels: Shape (N,).
        mean: Of each channel in [0, 255], shape (3,); black pixels that crops see are of this colour.
        std: Likewise.
        device: Where they stay.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, device: torch.device | str) -> None:
        count, self._side = images.shape[:2]
        wide = self._side + 2 * PADDING
        padded = mean.round().to(torch.uint8).expand(count, wide, wide, 3).clone()
        padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
        self._padded, self.labels = padded.to(device), labels.to(device)
        self._mean, self._std = mean.to(device), std.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, epoch: int, seed: int, count: int, batch_size: int) -> tuple[Tensor, ...]:
        """Places of an epoch's images, batch by batch; what fills no batch is left out, so that all have one shape.

        Args:
            epoch: With ``seed``, what is drawn.
            seed: Likewise.
            count: Of images; all where there are fewer.
            batch_size: Images a batch.
        """
        order = torch.randperm(len(self), generator=self._generator(epoch, seed), device=self.labels.device)[:count]
        return order[: len(order) // batch_size * batch_size].split(batch_size)

    def augmented(self, which: Tensor, *drawn_by: int) -> Tensor:
        """Random crops and flips of some images.

        Args:
            which: Their places, shape (N,).
            drawn_by: Numbers that fix what is drawn, such as seed, epoch and batch.

        Returns:
            Normalised, shape (N, 3, side, side), channels last in memory.
        """
        generator = self._generator(*drawn_by)
        top, left = torch.randint(2 * PADDING + 1, (2, len(which)), generator=generator, device=which.device)
        flipped = torch.rand(len(which), generator=generator, device=which.device) < 0.5
        return self.crops(which, top, left, flipped)

    def crops(self, which: Tensor, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
        """Crops of the padded images.

        Args:
            which: Places of the images, shape (N,).
            top: First row of each, shape (N,).
            left: First column of each, shape (N,).
            flipped: Whether each is mirrored, shape (N,).

        Returns:
            Normalised, shape (N, 3, side, side), channels last in memory.
        """
        steps = torch.arange(self._side, device=which.device)
        rows = top[:, None] + steps
        columns = left[:, None] + torch.where(flipped[:, None], self._side - 1 - steps, steps)
        pixels = self._padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        return ((pixels.float() - self._mean) / self._std).permute(0, 3, 1, 2)

    def plain(self, which: Tensor) -> Tensor:
        """Some images as they are, normalised; shapes as in :meth:`crops`."""
        centre = torch.full_like(which, PADDING)
        return self.crops(which, centre, centre, torch.zeros_like(which, dtype=torch.bool))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images as they are, and their labels."""
        for which in torch.arange(len(self), device=self.labels.device).split(batch_size):
            yield self.plain(which), self.labels[which]

    def _generator(self, *numbers: int) -> torch.Generator:
        seed = 0
        for number in numbers:
            seed = (seed * 1_000_003 + number + 1) % 2**31
        return torch.Generator(self.labels.device).manual_seed(seed)
