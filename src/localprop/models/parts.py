"""Blocks that the reference networks share."""

from __future__ import annotations

from torch import nn


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
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build conv (with bias) -> batch norm -> ReLU -> optional 2x2 max pool -> optional channel dropout."""
    modules: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
    if pool:
        modules.append(nn.MaxPool2d(2))
    if dropout:
        modules.append(nn.Dropout2d(dropout))
    return nn.Sequential(*modules)


def scaled(width: int, factor: float) -> int:
    """Scale a layer width, rounded, at least 1."""
    return max(1, round(width * factor))


def check_settings(image_shape: tuple[int, int, int], num_classes: int, *, width: float, dropout: float) -> None:
    """Refuse settings that no network can be built with.

    Raises:
        ValueError: A setting out of its range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: must be (channels, height, width), got {image_shape}")
    if num_classes < 2:
        raise ValueError(f"num_classes: must be at least 2, got {num_classes}")
    if not width > 0:
        raise ValueError(f"width: the factor of all layer widths must be positive, got {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: must be in [0, 1), got {dropout}")
