"""Blocks that the reference networks share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Literal

from torch import nn

from localprop.network import LocalNetwork

Nonlinearity = Literal["relu", "leaky_relu", "tanh"]


class FlatBlock(nn.Sequential):
    """Give a flat output that local objectives average over K contiguous pieces.

    Args:
        modules: The block's modules, in order.
        feature_chunks: K; must divide the output width.
    """

    def __init__(self, *modules: nn.Module, feature_chunks: int) -> None:
        super().__init__(*modules)
        self.feature_chunks = feature_chunks


def conv_block(
    in_channels: int,
    out_channels: int,
    *,
    stride: int = 1,
    kernel: int = 3,
    pool: bool = False,
    ceil_mode: bool = False,
    dropout: float = 0.0,
    nonlinearity: Nonlinearity = "relu",
) -> nn.Sequential:
    """Build conv (with bias) -> batch norm -> nonlinearity -> optional 2x2 max pool -> optional channel dropout.

    With `ceil_mode` a pool rounds sides up, so that a map of one position stays as it is.
    """
    modules: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        activation(nonlinearity),
    ]
    if pool:
        modules.append(nn.MaxPool2d(2, ceil_mode=ceil_mode))
    if dropout:
        modules.append(nn.Dropout2d(dropout))
    return nn.Sequential(*modules)


def hidden_block(
    inputs: int,
    outputs: int,
    *,
    chunks: int = 1,
    dropout: float = 0.0,
    nonlinearity: Nonlinearity = "relu",
    flatten: bool = False,
) -> FlatBlock:
    """Build (flattening ->) linear -> batch norm -> nonlinearity -> optional dropout."""
    modules: list[nn.Module] = [nn.Flatten()] if flatten else []
    modules += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), activation(nonlinearity)]
    if dropout:
        modules.append(nn.Dropout(dropout))
    return FlatBlock(*modules, feature_chunks=chunks)


def pooled_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Build a linear classifier on globally averaged features."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def activation(name: Nonlinearity) -> nn.Module:
    """Build an activation; leaky ReLU has slope 0.01.

    Raises:
        ValueError: An unknown name.
    """
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=True)
    if name == "tanh":
        return nn.Tanh()
    raise ValueError(f"nonlinearity: must be 'relu', 'leaky_relu' or 'tanh', got {name!r}")


def scaled(width: int, factor: float) -> int:
    """Scale a layer width, rounded, at least 1."""
    return max(1, round(width * factor))


def named(build: Callable[..., LocalNetwork], name: str, **words: object) -> Callable[..., LocalNetwork]:
    """Name a builder, and fill the words into its docstring."""
    build.__doc__ = (inspect.getdoc(build) or "").format(**words)
    build.__name__ = build.__qualname__ = name
    return build


def check_settings(image_shape: tuple[int, int, int], num_classes: int, *, width: float, dropout: float) -> None:
    """Refuse settings that no network can be built with.

    Raises:
        ValueError: A setting out of its range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: must be (channels, height, width), got {image_shape}")
    if num_classes < 2:
        raise ValueError(f"num_classes: must be at least 2, got {num_classes}")
    if not 0 < width < math.inf:
        raise ValueError(f"width: the factor of all layer widths must be positive and finite, got {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: must be in [0, 1), got {dropout}")
