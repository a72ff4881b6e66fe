"""MobileNetV2 for small images, made of torchvision's."""

from __future__ import annotations

from torchvision.models import MobileNetV2

# expansion, channels, repeats, stride: torchvision's, but for the strides of the second group
_SMALL_IMAGE_GROUPS = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def small_image_mobilenet_v2(num_classes: int = 100, width_mult: float = 0.75, dropout: float = 0.0) -> MobileNetV2:
    """MobileNetV2 (Sandler et al. 2018) with stride 8 in place of 32: 32x32 images end as 4x4 maps.

    Args:
        num_classes: Number of classes K.
        width_mult: Multiplies the channels; the checkpoint paper's student has 0.75.
        dropout: Before the last layer.

    Returns:
        torchvision's network with the strides of the stem and the second group set to 1.
    """
    network = MobileNetV2(
        num_classes=num_classes, width_mult=width_mult, dropout=dropout, inverted_residual_setting=_SMALL_IMAGE_GROUPS
    )
    network.features[0][0].stride = (1, 1)
    return network
