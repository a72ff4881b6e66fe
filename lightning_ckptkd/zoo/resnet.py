"""ResNets for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CIFARResNet(nn.Module):
    """ResNet-(6n + 2): three groups of n basic blocks; shortcuts that change shape are 1x1 convolutions.

    Args:
        depth: 6n + 2, such as 8, 14, 20, 32, 56, 110.
        num_classes: Number of classes K.
        width: Channels of the first group; the next ones have twice and four times as many.
        in_channels: Channels of the image.
        stem_stride: Stride of the first convolution: 1 as in the paper; 2 halves height and width, and so leaves
            a quarter of the multiplications.
    """

    def __init__(
        self, depth: int = 32, num_classes: int = 100, width: int = 16, in_channels: int = 3, stem_stride: int = 1
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ArgumentError(f"depth should be 6n + 2 (8, 14, 20, 32, 56, 110), got {depth}.")
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        groups, channels = [], width
        for group in range(3):
            group_width = width * 2**group
            for block in range(blocks):
                groups.append(_BasicBlock(channels, group_width, 2 if group and not block else 1))
                channels = group_width
        self.blocks = nn.Sequential(*groups)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K), of images (N, C, H, W)."""
        features = self.blocks(self.stem(x)).mean((2, 3))
        logits: Tensor = self.fc(features)
        return logits
