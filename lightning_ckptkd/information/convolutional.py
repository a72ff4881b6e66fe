r"""Both terms by the paper's convolutional networks on a feature map: an image decoder and a classifier.

I(X;F) >= H(X) - R(X|F), where R is the cost of the best decoder. H(X) is unknown but the same for each snapshot; in
its place stands the cost of the best decoder that sees nothing, the mean image, so that the score is zero where the
features tell nothing. That cost is far above H(X) where pixels depend on each other, so the score is a gain over the
mean image and no bound of I(X;F): images of one bit can give hundreds of nats. I(Y;F) >= H(Y) - CE of the best
classifier.

The last fold of the samples scores, the one before it says when to stop, the others train.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd.information.label import label_surprises
from lightning_ckptkd.information.likelihoods import image_costs, output_of_mean
from lightning_ckptkd.information.robust import within_fence
from lightning_ckptkd.shapes import Bool, Float, Int

_BATCH_SIZE = 64
_LEARNING_RATE = 1e-2
_LARGE = 64  # pixels
_CHECKS = 20  # looks at the stopping fold in the whole budget
_PATIENCE = 5  # looks without progress before it stops


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


class _ImageModel(nn.Module):
    """A decoder, and the log-variance of each channel (C, 1, 1) for a normal density."""

    def __init__(self, in_channels: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.decoder = ConvolutionalDecoder(in_channels, image_shape)
        self.log_variance = nn.Parameter(torch.zeros(image_shape[0], 1, 1))


class ConvolutionalClassifier(nn.Sequential):
    """The paper's auxiliary classifier: Conv3x3, BN, ReLU, average pool, Linear to 128, ReLU, Linear.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Number of classes K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


def unit_range(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """Undo a normalisation: map each channel's smallest value to 0 and its largest to 1.

    Args:
        images: Shape (N, C, H, W).
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def scoring_fold(folds: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Which samples the convolutional estimators are scored on, shape (N,), bool.

    Args:
        folds: Fold of each sample, shape (N,).
    """
    return folds == folds.max()


def convolutional_input_gains(
    images: Float[Tensor, "N C H W"],
    feature_maps: Float[Tensor, "N Cf Hf Wf"],
    folds: Int[Tensor, " N"],
    *,
    likelihood: str = "bce",
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " N_scoring"]:
    """What each sample of the scoring fold adds to the decoder's gain over the mean image.

    The decoder has the same initial weights, batches and budget for each snapshot.

    Args:
        images: Shape (N, C, H, W); in [0, 1] except for ``gaussian``.
        feature_maps: Shape (N, Cf, Hf, Wf).
        folds: Fold of each sample, shape (N,), three or more of them.
        likelihood: ``bce``, ``continuous_bernoulli`` or ``gaussian``.
        steps: Optimiser steps at most (Adam, batches of 64).
        seed: Seed of the initial weights and the batches.
        device: Where the decoder is trained; the samples may stay where they are.

    Returns:
        Nats an image, summed over pixels and channels, shape (N_scoring,), float64.
    """
    channels, height, width = images.shape[1:]
    fit = folds < folds.max() - 1
    maps = _scaled(feature_maps, fit)

    def make() -> nn.Module:
        return _ImageModel(maps.shape[1], (channels, height, width))

    def cost(model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, _ImageModel)
        outputs = model.decoder(maps[batch].to(device))
        return image_costs(outputs, images[batch].to(device), likelihood, model.log_variance)

    costs = _held_out_costs(make, cost, folds, steps, seed, device)
    scored = images[scoring_fold(folds)].to(device)
    output, log_variance = output_of_mean(images[fit].to(device), likelihood)
    return image_costs(output.expand_as(scored), scored, likelihood, log_variance).double() - costs


def convolutional_label_gains(
    labels: Int[Tensor, " N"],
    feature_maps: Float[Tensor, "N Cf Hf Wf"],
    folds: Int[Tensor, " N"],
    *,
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " N_scoring"]:
    """What each sample of the scoring fold adds to I(Y;F), by the paper's classifier.

    Args:
        labels: Class indices, shape (N,).
        feature_maps: Shape (N, Cf, Hf, Wf).
        folds: Fold of each sample, shape (N,), three or more of them.
        steps: Optimiser steps at most (Adam, batches of 64).
        seed: Seed of the initial weights and the batches.
        device: Where the classifier is trained; the samples may stay where they are.

    Returns:
        log q(y|f) - log p(y) in nats, shape (N_scoring,), float64; p are the frequencies in the scoring fold.
    """
    maps = _scaled(feature_maps, folds < folds.max() - 1)
    num_classes = int(labels.max()) + 1

    def make() -> nn.Module:
        return ConvolutionalClassifier(maps.shape[1], num_classes)

    def cost(classifier: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(classifier(maps[batch].to(device)), labels[batch].to(device), reduction="none")

    return label_surprises(labels[scoring_fold(folds)]) - _held_out_costs(make, cost, folds, steps, seed, device)


def _scaled(maps: Tensor, fit: Tensor) -> Tensor:
    """Maps (N, C, H, W) of unit deviation over the samples that fit; those far outside of all others are pulled in."""
    maps = within_fence(maps.float().flatten(1)).view(maps.shape)
    return maps / maps[fit].std().clamp_min(1e-12)


def _enlarge(height: int, width: int, in_channels: int, channels: int) -> list[nn.Module]:
    """Upsample, Conv3x3, BN, ReLU."""
    return [
        nn.Upsample(size=(height, width), mode="bilinear", align_corners=False),
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def _held_out_costs(
    make: Callable[[], nn.Module],
    cost: Callable[[nn.Module, Tensor], Tensor],
    folds: Tensor,
    steps: int,
    seed: int,
    device: torch.device | str,
) -> Tensor:
    """Train a network with a fixed budget and early stopping; the costs of the scoring fold, shape (N_scoring,).

    Args:
        make: Makes the network.
        cost: Of each sample of a batch of indices, shape (B,).
        folds: Fold of each sample, shape (N,).
        steps: The budget.
        seed: Seed of the initial weights and the batches.
        device: Where to train.
    """
    last = int(folds.max())
    fit, stop, score = ((part).nonzero().squeeze(1) for part in (folds < last - 1, folds == last - 1, folds == last))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = make().to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        every = max(1, steps // _CHECKS)
        best, kept, waited = float(_costs(network, cost, stop).mean()), copy.deepcopy(network.state_dict()), 0
        for step in range(1, steps + 1):
            batch = fit[torch.randint(len(fit), (min(_BATCH_SIZE, len(fit)),))]
            optimizer.zero_grad()
            cost(network, batch).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == steps:
                now = float(_costs(network, cost, stop).mean())
                waited += 1
                if now < best:
                    best, kept, waited = now, copy.deepcopy(network.state_dict()), 0
                if waited == _PATIENCE:
                    break
    network.load_state_dict(kept)
    return _costs(network, cost, score)


def _costs(network: nn.Module, cost: Callable[[nn.Module, Tensor], Tensor], samples: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        costs = torch.cat([cost(network, batch).double() for batch in torch.split(samples, 4 * _BATCH_SIZE)])
    network.train()
    return costs
