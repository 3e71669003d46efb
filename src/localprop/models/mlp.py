"""Multilayer perceptrons of any widths."""

from __future__ import annotations

import itertools
import math

from torch import nn

from localprop.models.parts import FlatBlock, Nonlinearity, activation, check_settings, hidden_block, scaled
from localprop.network import LocalNetwork


def mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    hidden: tuple[int, ...] = (1024, 1024, 1024),
    width: float = 1.0,
    batch_norm: bool = True,
    dropout: float = 0.0,
    nonlinearity: Nonlinearity = "relu",
) -> LocalNetwork:
    """Build [linear, batch norm, ReLU] for every hidden width, then the classifier, each a block.

    Args:
        image_shape: (C, H, W); images are flattened.
        num_classes: Z.
        hidden: Width of each hidden layer; at least one. Published: three of 1024 for gray images, of 3000 for CIFAR.
        width: Factor of all hidden widths.
        batch_norm: Whether hidden layers are normalised.
        dropout: Probability at the end of each hidden block.
        nonlinearity: Of every hidden block.

    Cost: 2,919,434 parameters on 1x28x28 and 10 classes.

    Raises:
        ValueError: A setting out of its range.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden: name the width of at least one hidden layer, each at least 1, got {tuple(hidden)}")
    widths = [math.prod(image_shape), *(scaled(size, width) for size in hidden)]
    blocks: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        if batch_norm:
            block = hidden_block(inputs, outputs, dropout=dropout, nonlinearity=nonlinearity, flatten=index == 0)
        else:
            start = [nn.Flatten()] if index == 0 else []
            end = [nn.Dropout(dropout)] if dropout else []
            block = FlatBlock(*start, nn.Linear(inputs, outputs), activation(nonlinearity), *end, feature_chunks=1)
        blocks.append(block)
    blocks.append(nn.Linear(widths[-1], num_classes))
    return LocalNetwork(blocks, [*(f"hidden{i + 1}" for i in range(len(hidden))), "classifier"])
