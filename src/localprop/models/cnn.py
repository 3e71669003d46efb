"""The small convolutional network of the studies of decoupled learning: three wide 5x5 convolutions."""

from __future__ import annotations

from torch import nn

from localprop.models.parts import Nonlinearity, check_settings, conv_block, hidden_block, scaled
from localprop.network import LocalNetwork

CHANNELS, CONVOLUTIONS, HIDDEN = 128, 3, 256


def cnn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: float = 1.0,
    dropout: float = 0.0,
    nonlinearity: Nonlinearity = "relu",
) -> LocalNetwork:
    """Build 3 x [5x5 conv 128, batch norm, ReLU, 2x2 max pool], a linear layer of 256 and the classifier.

    Args:
        image_shape: (C, H, W); at least 8 x 8 pixels.
        num_classes: Z.
        width: Factor of all layer widths.
        dropout: Probability at the end of each hidden block.
        nonlinearity: Of every hidden block.

    Returns:
        5 blocks.

    Raises:
        ValueError: A setting out of its range, or an image smaller than 8 pixels.

    References: Jaderberg et al., "Decoupled Neural Interfaces using Synthetic Gradients", ICML 2017, and Belilovsky et
        al., "Decoupled Greedy Learning of CNNs", ICML 2020, use networks of this form; the hidden layer's width is
        that of a later study.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    channels, *size = image_shape
    if min(size) < 2**CONVOLUTIONS:
        raise ValueError(f"image_shape: cnn halves an image three times and needs 8 pixels or more, got {tuple(size)}")
    blocks: list[nn.Module] = []
    for _ in range(CONVOLUTIONS):
        out_channels = scaled(CHANNELS, width)
        blocks.append(
            conv_block(channels, out_channels, kernel=5, pool=True, dropout=dropout, nonlinearity=nonlinearity)
        )
        channels = out_channels
        size = [side // 2 for side in size]
    hidden = scaled(HIDDEN, width)
    inputs = channels * size[0] * size[1]
    blocks.append(hidden_block(inputs, hidden, dropout=dropout, nonlinearity=nonlinearity, flatten=True))
    blocks.append(nn.Linear(hidden, num_classes))
    return LocalNetwork(blocks, [*(f"conv{i + 1}" for i in range(CONVOLUTIONS)), "hidden", "classifier"])
