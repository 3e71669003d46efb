"""A convolution of a map that was resized before, at the price of the smaller map.

A local decoder draws the whole image from the small map of a late block. Resized to the image, that map is the largest
tensor of a training step, and its convolution costs as if the block had kept the image's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(h: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly, corners on corners: shape (N, C, H, W) -> (N, C, *size)."""
    if tuple(h.shape[2:]) == size:
        return h
    return F.interpolate(h, size, mode="bilinear", align_corners=True)


def convolve_upsampled(h: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the convolution of the resized map, `conv2d(upsample(h, size), weight, bias, padding="same")`.

    Resizing and convolving are both linear, and act on channels, rows and columns one after the other:

        out[o] = bias[o] + sum_{a, b} U[a] (sum_c W[o, c, a, b] h[c]) V[b]^T

    so the channels can be mixed first, on the small map, and the resized one, (N, C, H_0, W_0), is never made. Where
    that takes more multiplications (few channels, or a map nearly as large as the image) the map is resized first.

    Args:
        h: Shape (N, C, H, W).
        weight: W. Shape (O, C, A, B), with odd A and B.
        bias: Shape (O,).
        size: (H_0, W_0).

    Returns:
        Shape (N, O, H_0, W_0).
    """
    num_out, num_in, *kernel = weight.shape
    if not _mixing_first_is_cheaper(num_in, (h.shape[2], h.shape[3]), size, kernel):
        return F.conv2d(upsample(h, size), weight, bias, padding="same")
    mixing = weight.permute(0, 2, 3, 1).reshape(-1, num_in, 1, 1)
    mixed = F.conv2d(h, mixing)
    rows, columns = (
        _taps(length, full, taps, mixed) for length, full, taps in zip(h.shape[2:], size, kernel, strict=True)
    )
    wide = torch.einsum("noabij,bjx->noaix", mixed.view(h.shape[0], num_out, *kernel, *h.shape[2:]), columns)
    return rows.flatten(0, 1).T @ wide.flatten(2, 3) + bias[:, None, None]


def _mixing_first_is_cheaper(channels: int, small: tuple[int, int], size: tuple[int, int], kernel: list[int]) -> bool:
    """Compare multiplications for one image and one channel of the result."""
    (height, width), (full_height, full_width), (num_rows, num_columns) = small, size, kernel
    mix = num_rows * num_columns * channels * height * width
    widen = num_rows * num_columns * height * width * full_width
    heighten = num_rows * height * full_height * full_width
    return mix + widen + heighten < num_rows * num_columns * channels * full_height * full_width


def _taps(length: int, size: int, num_taps: int, like: Tensor) -> Tensor:
    """Return what each tap sees of a resized axis: shape (num_taps, length, size), 0 where the padding is."""
    each = torch.eye(length, dtype=like.dtype, device=like.device)
    resized = F.interpolate(each[None], size, mode="linear", align_corners=True)[0]
    return F.pad(resized, (num_taps // 2, num_taps // 2)).unfold(1, size, 1).transpose(0, 1)
