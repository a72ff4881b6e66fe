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
_LARGE = 64  # pixels


class ConvolutionalDecoder(nn.Sequential):
    """The paper's decoders (after InfoPro); the last sigmoid is part of the cost.

    For images of up to 64 pixels: upsample, Conv3x3 to 12 channels, BN, ReLU, Conv3x3. For larger ones, ImageNet's:
    Conv1x1 to 128, then in three steps to a quarter, half and all of the size, with 32 and 12 channels on the way.

    Args:
        in_channels: Channels C of the feature map.
        image_shape: Channels, height and width of the image.
    """

    def __init__(self, in_channels: int, image_shape: tuple[int, int, int]) -> None:
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        if max(height, width) > _LARGE:
            layers += [nn.Conv2d(in_channels, 128, 1), nn.BatchNorm2d(128), nn.ReLU()]
            layers += [*_enlarge(height // 4, width // 4, 128, 32), *_enlarge(height // 2, width // 2, 32, 12)]
            layers += _enlarge(height, width, 12, channels)[:2]
        else:
            layers += [*_enlarge(height, width, in_channels, 12), nn.Conv2d(12, channels, 3, padding=1)]
        super().__init__(*layers)


def _enlarge(height: int, width: int, in_channels: int, channels: int) -> list[nn.Module]:
    """Upsample, Conv3x3, BN, ReLU."""
    return [
        nn.Upsample(size=(height, width), mode="bilinear", align_corners=False),
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def unit_range(images: Tensor) -> Tensor:
    """Undo a normalisation: map each channel's smallest value to 0 and its largest to 1.

    Args:
        images: Shape (N, C, H, W).
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def convolutional_information(
    images: Tensor,
    feature_maps: Tensor,
    folds: Tensor,
    *,
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
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
        device: Where the decoder is trained; the samples may stay where they are.

    Returns:
        Nats an image, summed over pixels and channels.
    """
    held_out = folds == folds.max()
    fit = (~held_out).nonzero().squeeze(1)
    feature_maps = feature_maps.float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        channels, height, width = images.shape[1:]
        decoder = ConvolutionalDecoder(feature_maps.shape[1], (channels, height, width)).to(device)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        scale = feature_maps[fit].std().clamp_min(1e-12)
        for _ in range(steps):
            batch = fit[torch.randint(len(fit), (min(_BATCH_SIZE, len(fit)),))]
            decoded = decoder((feature_maps[batch] / scale).to(device))
            cost = F.binary_cross_entropy_with_logits(decoded, images[batch].to(device))
            optimizer.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    decoder.eval()
    mean_image = images[fit].mean(0, keepdim=True).clamp(1e-4, 1 - 1e-4).to(device)
    gain = 0.0
    with torch.no_grad():
        for batch in torch.split(held_out.nonzero().squeeze(1), _BATCH_SIZE):
            truth = images[batch].to(device)
            decoded = decoder((feature_maps[batch] / scale).to(device))
            alone = F.binary_cross_entropy(mean_image.expand_as(truth), truth, reduction="sum")
            gain += float(alone - F.binary_cross_entropy_with_logits(decoded, truth, reduction="sum"))
    return gain / int(held_out.sum())
