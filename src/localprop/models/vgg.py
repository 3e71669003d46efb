"""VGG8B: six convolutions and one fully connected hidden layer, each a block."""

from __future__ import annotations

from torch import nn

from localprop.models.parts import FlatBlock, check_settings, conv_block, scaled
from localprop.network import LocalNetwork

PLAN = ((128, False), (256, True), (256, False), (512, True), (512, True), (512, True))
"""(channels, whether a 2x2 max pool follows) of each convolution."""


def vgg8b(
    image_shape: tuple[int, int, int], num_classes: int, *, width: float = 1.0, dropout: float = 0.0
) -> LocalNetwork:
    """Build VGG8B: 128, 256-M, 256, 512-M, 512-M, 512-M, then a linear layer of 1024 and the classifier.

    Args:
        image_shape: (C, H, W); at least 16 x 16 pixels. Above 64 pixels the first convolution is 7x7 with stride 2.
        num_classes: Z.
        width: Factor of all layer widths.
        dropout: Probability at the end of each hidden block.

    Returns:
        8 blocks. The hidden linear block is averaged over K = 2 chunks by local objectives.

    Cost: 7,328,266 parameters on 1x28x28 and 10 classes, 8,903,434 on 3x32x32.

    Raises:
        ValueError: A setting out of its range, or an image smaller than 16 pixels.

    References: Nokland and Eidnes, ICML 2019; Choi et al., ICLR 2024.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    channels, *size = image_shape
    large = min(size) > 64
    if min(size) < 16:
        raise ValueError(
            f"image_shape: vgg8b halves an image four times and needs 16 pixels or more, got {tuple(size)}"
        )
    blocks: list[nn.Module] = []
    if large:
        size = [(side + 1) // 2 for side in size]
    for index, (plan_channels, pool) in enumerate(PLAN):
        out_channels = scaled(plan_channels, width)
        first = large and index == 0
        blocks.append(
            conv_block(
                channels,
                out_channels,
                kernel=7 if first else 3,
                stride=2 if first else 1,
                pool=pool,
                dropout=dropout,
            )
        )
        channels = out_channels
        size = [side // 2 for side in size] if pool else size
    hidden = 2 * scaled(512, width)
    hidden_modules = [
        nn.Flatten(),
        nn.Linear(channels * size[0] * size[1], hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
    ]
    blocks.append(FlatBlock(*hidden_modules, *([nn.Dropout(dropout)] if dropout else []), feature_chunks=2))
    blocks.append(nn.Linear(hidden, num_classes))
    return LocalNetwork(blocks, [*(f"conv{i}" for i in range(1, 7)), "hidden", "classifier"])
