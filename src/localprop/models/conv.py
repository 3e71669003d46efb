"""The small convolutional networks of the DCL paper."""

from __future__ import annotations

from typing import Literal

from torch import nn

from localprop.models.parts import check_settings, conv_block, pooled_classifier, scaled
from localprop.network import LocalNetwork

CHANNELS = {"simple256": (64, 256), "simple512": (64, 256, 512)}


def conv(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    variant: Literal["simple256", "simple512"] = "simple256",
    width: float = 1.0,
    dropout: float = 0.0,
) -> LocalNetwork:
    """Build 3x3 conv 64, 3x3 conv 256 with stride 2 (and 3x3 conv 512 with stride 2), then pooling and a classifier.

    Args:
        image_shape: (C, H, W).
        num_classes: Z.
        variant: "simple256" (MNIST, CIFAR-10) or "simple512" (CIFAR-100).
        width: Factor of all layer widths.
        dropout: Probability at the end of each hidden block.

    Returns:
        One block a convolution, and the classifier on globally averaged features.

    Cost: 151,562 parameters on 1x28x28 and 10 classes.

    Raises:
        ValueError: A setting out of its range.

    References: Choi et al., ICLR 2024.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    if variant not in CHANNELS:
        raise ValueError(f"variant: must be one of {list(CHANNELS)}, got {variant!r}")
    widths = [image_shape[0], *(scaled(channels, width) for channels in CHANNELS[variant])]
    blocks: list[nn.Module] = [
        conv_block(widths[i], widths[i + 1], stride=1 if i == 0 else 2, dropout=dropout) for i in range(len(widths) - 1)
    ]
    blocks.append(pooled_classifier(widths[-1], num_classes))
    return LocalNetwork(blocks, [*(f"conv{i}" for i in range(1, len(widths))), "classifier"])
