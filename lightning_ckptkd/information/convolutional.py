r"""I(X;F) by the paper's convolutional decoder from a spatial feature map back to the image.

I(X;F) >= H(X) - R(X|F), where R is the reconstruction cost of the best decoder. H(X) is unknown but the same for
each snapshot; in its place stands the cost of the best decoder that sees nothing, the mean image, so that the score
is zero where the features tell nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BATCH_SIZE = 64
_LEARNING_RATE = 1e-2


class ConvolutionalDecoder(nn.Sequential):
    """The paper's decoder for small images (after InfoPro): upsample, Conv3x3, BN, ReLU, Conv3x3.

    The last sigmoid is part of the cost.

    Args:
        in_channels: Channels C of the feature map.
        image_shape: Channels, height and width of the image.
    """

    def __init__(self, in_channels: int, image_shape: tuple[int, int, int]) -> None:
        channels, height, width = image_shape
        super().__init__(
            nn.Upsample(size=(height, width), mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, channels, 3, padding=1),
        )


def unit_range(images: Tensor) -> Tensor:
    """Undo a normalisation: map each channel's smallest value to 0 and its largest to 1.

    Args:
        images: Shape (N, C, H, W).
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def convolutional_information(
    images: Tensor, feature_maps: Tensor, folds: Tensor, *, steps: int = 300, seed: int = 0
) -> float:
    """Decodable I(X;F) in nats an image: the held-out gain in binary cross-entropy over the mean image.

    The decoder has the same initial weights, batches and number of steps for each snapshot. The last fold scores,
    the others train.

    Args:
        images: Pixels in [0, 1], shape (N, C, H, W).
        feature_maps: Shape (N, Cf, Hf, Wf).
        folds: Fold of each sample, shape (N,).
        steps: Optimiser steps (Adam, batches of 64).
        seed: Seed of the initial weights and the batches.

    Returns:
        Nats an image, summed over pixels and channels.
    """
    held_out = folds == folds.max()
    fit = (~held_out).nonzero().squeeze(1)
    images, feature_maps = images.float(), feature_maps.float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        channels, height, width = images.shape[1:]
        decoder = ConvolutionalDecoder(feature_maps.shape[1], (channels, height, width)).to(images.device)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        scale = feature_maps[fit].std().clamp_min(1e-12)
        for _ in range(steps):
            batch = fit[torch.randint(len(fit), (min(_BATCH_SIZE, len(fit)),))]
            cost = F.binary_cross_entropy_with_logits(decoder(feature_maps[batch] / scale), images[batch])
            optimizer.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    decoder.eval()
    mean_image = images[fit].mean(0, keepdim=True).clamp(1e-4, 1 - 1e-4).expand_as(images[held_out])
    with torch.no_grad():
        pieces = [decoder(piece / scale) for piece in torch.split(feature_maps[held_out], _BATCH_SIZE)]
        alone = F.binary_cross_entropy(mean_image, images[held_out])
        given_f = F.binary_cross_entropy_with_logits(torch.cat(pieces), images[held_out])
    return float((alone - given_f).double() * images[0].numel())
