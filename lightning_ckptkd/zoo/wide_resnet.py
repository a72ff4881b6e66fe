"""Wide ResNets for small images (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError


class _PreActivationBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, channels, 1, stride, bias=False) if stride != 1 or in_channels != channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = skip + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out


class WideResNet(nn.Module):
    """WRN-depth-k: three groups of (depth - 4) / 6 pre-activation blocks, k times as wide as a ResNet's.

    Args:
        depth: 6n + 4, such as 10, 16, 22, 28, 40.
        widen_factor: k.
        num_classes: Number of classes K.
        in_channels: Channels of the image.
    """

    def __init__(self, depth: int = 40, widen_factor: int = 2, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ArgumentError(f"depth should be 6n + 4 (10, 16, 22, 28, 40), got {depth}.")
        blocks = (depth - 4) // 6
        channels = 16
        self.stem = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        groups = []
        for group in range(3):
            group_width = 16 * widen_factor * 2**group
            for block in range(blocks):
                groups.append(_PreActivationBlock(channels, group_width, 2 if group and not block else 1))
                channels = group_width
        self.blocks = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K), of images (N, C, H, W)."""
        features = F.relu(self.bn(self.blocks(self.stem(x)))).mean((2, 3))
        logits: Tensor = self.fc(features)
        return logits
