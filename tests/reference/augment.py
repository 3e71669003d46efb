"""Crop with padding and flip, pixel by pixel, with every random number given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def crop(image: Tensor, top: int, left: int, padding: int, fill: float = 0.0) -> Tensor:
    """Cut (C, H, W) out of the image padded on every side; the corner (top, left) is in 0 .. 2 padding."""
    channels, height, width = image.shape
    if not (0 <= top <= 2 * padding and 0 <= left <= 2 * padding):
        raise ValueError(f"top and left must lie in 0 .. {2 * padding}, got {top} and {left}")
    cut = torch.full_like(image, fill)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                source_i, source_j = i + top - padding, j + left - padding
                if 0 <= source_i < height and 0 <= source_j < width:
                    cut[c, i, j] = image[c, source_i, source_j]
    return cut


def flip(image: Tensor) -> Tensor:
    """Mirror (C, H, W) left to right."""
    channels, height, width = image.shape
    mirrored = torch.empty_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                mirrored[c, i, j] = image[c, i, width - 1 - j]
    return mirrored


def crop_and_flip(
    images: Tensor,
    offsets: Sequence[tuple[int, int]],
    flips: Sequence[bool],
    padding: int,
    fill: float = 0.0,
) -> Tensor:
    """Crop every image of (N, C, H, W) at its own (top, left), then flip it where its flag says so."""
    result = []
    for n in range(images.shape[0]):
        image = crop(images[n], *offsets[n], padding, fill)
        result.append(flip(image) if flips[n] else image)
    return torch.stack(result)


def square(height: int, width: int, top: int, left: int, size: int) -> Tensor:
    """(H, W) bool: the part of a square of `size` pixels at (top, left) that lies inside the image."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    for row in range(top, top + size):
        for column in range(left, left + size):
            if 0 <= row < height and 0 <= column < width:
                inside[row, column] = True
    return inside
