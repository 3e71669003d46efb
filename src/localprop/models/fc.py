"""The fully connected network of the DCL paper."""

from __future__ import annotations

import math

from torch import nn

from localprop.models.parts import FlatBlock, check_settings, scaled
from localprop.network import LocalNetwork


def fc(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    hidden: int | None = None,
    chunks: int | None = None,
    width: float = 1.0,
    dropout: float = 0.0,
) -> LocalNetwork:
    """Build [linear, ReLU], [layer norm, linear, ReLU], [layer norm, linear].

    Args:
        image_shape: (C, H, W); images are flattened.
        num_classes: Z.
        hidden: H, the width of both hidden layers. Default 1024 for gray images and 3072 for colour, as published.
        chunks: K, the contiguous pieces that local objectives average a hidden layer over; must divide the width.
            Default as published: 8 for gray images, 48 for colour with up to 10 classes, 12 with more.
        width: Factor of H.
        dropout: Probability at the end of each hidden block.

    Cost: 1,867,786 parameters on 1x28x28 and 10 classes, 18,923,530 on 3x32x32.

    Raises:
        ValueError: A setting out of its range, or `chunks` does not divide the hidden width.

    Note: The published code applies a ReLU to the classifier's logits; this network does not (ADR 0003).

    References: Choi et al., ICLR 2024.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    gray = image_shape[0] == 1
    if hidden is None:
        hidden = 1024 if gray else 3072
    if chunks is None:
        chunks = 8 if gray else 48 if num_classes <= 10 else 12
    if hidden < 1 or chunks < 1:
        raise ValueError(f"hidden and chunks: must be at least 1, got {hidden} and {chunks}")
    size = scaled(hidden, width)
    if size % chunks:
        raise ValueError(
            f"chunks: must divide the hidden width {size}, got {chunks}; choose another hidden, width or chunks"
        )
    drop = [nn.Dropout(dropout)] if dropout else []
    return LocalNetwork(
        [
            FlatBlock(
                nn.Flatten(),
                nn.Linear(math.prod(image_shape), size),
                nn.ReLU(inplace=True),
                *drop,
                feature_chunks=chunks,
            ),
            FlatBlock(nn.LayerNorm(size), nn.Linear(size, size), nn.ReLU(inplace=True), *drop, feature_chunks=chunks),
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, num_classes)),
        ],
        ["hidden1", "hidden2", "classifier"],
    )
