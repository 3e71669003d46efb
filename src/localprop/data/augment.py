"""Random changes of a batch of images: per sample, without a loop, on the batch's own device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Augmentation:
    """Says how training images are varied.

    Attributes:
        crop_padding: Zero pixels added on every side before a random crop of the original size, 0 or more.
        flip: Mirror every other image left to right, at random.
        cutout: Pixels a side of a square hole at a random place, 0 for none; it may reach over the border.

    Raises:
        ValueError: `crop_padding` or `cutout` is negative.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be 0 or more pixels, got {self.crop_padding}; 0 crops nothing")
        if self.cutout < 0:
            raise ValueError(f"cutout must be 0 or more pixels a side, got {self.cutout}; 0 cuts nothing out")


def augment(images: Tensor, augmentation: Augmentation, seed: int) -> Tensor:
    """Crop and flip every image of a batch at random; the same seed gives the same result on any device.

    The hole of `cutout` is not made here but by `cut_out`, after normalisation, where 0 is the mean.

    Args:
        images: Pixels, uint8 or floating point.
        augmentation: What to vary.
        seed: Seeds this batch alone, 0 .. 2^63 - 1; the global random state is neither read nor moved.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """
    if not augmentation.crop_padding and not augmentation.flip:
        return images
    # Drawn on the CPU, whose generator gives the same numbers whatever the device of the batch.
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, 2 * augmentation.crop_padding + 1, (2, len(images)), generator=generator)
    flipped = torch.randint(0, 2, (len(images),), generator=generator).bool() & augmentation.flip
    top, left = offsets.to(images.device, non_blocking=True)
    flipped = flipped.to(images.device, non_blocking=True)
    return crop_and_flip(images, top, left, flipped, padding=augmentation.crop_padding)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, *, padding: int) -> Tensor:
    """Pad every image with zeros, cut its own window of the original size, and mirror it where asked.

    Args:
        images: Pixels of any dtype.
        top: First row of the window in the padded image, int64, 0 .. 2 * padding.
        left: First column of the window in the padded image, int64, 0 .. 2 * padding.
        flipped: Whether to mirror the window left to right, bool.
        padding: Zero pixels on every side.

    Shape:
        images (N, C, H, W), the others (N,); to (N, C, H, W).
    """
    count, channels, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    column = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flipped[:, None], width - 1 - column, column)
    rows = top[:, None] + torch.arange(height, device=images.device)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    pixels = pixels.view(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(count, channels, height, width)


def cut_out(images: Tensor, size: int, seed: int) -> Tensor:
    """Set a square of every image to zero; its centre is any pixel, so it may reach over the border.

    Args:
        images: Normalised images, so that zero is the mean; changed in place.
        size: Pixels a side; 0 changes nothing.
        seed: Seeds this batch alone, as for `augment`.

    Shape:
        (N, C, H, W) to (N, C, H, W).

    References: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
        arXiv:1708.04552.
    """
    if size == 0:
        return images
    generator = torch.Generator().manual_seed(seed)
    inside = []
    for length in images.shape[2:]:
        start = torch.randint(length, (len(images), 1), generator=generator) - size // 2
        place = torch.arange(length)
        inside.append(((place >= start) & (place < start + size)).to(images.device, non_blocking=True))
    rows, columns = inside
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
