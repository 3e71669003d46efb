"""Random views of images, and overlapping patches: what self-supervised losses compare."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the gray of ITU-R BT.601."""


def random_view(images: Tensor, generator: torch.Generator, *, smallest_crop: float, jitter: float) -> Tensor:
    """Draw one view of every image: a resized crop, mirrored or not, with other brightness, contrast and saturation.

    A crop of area a ~ U(smallest_crop, 1) and aspect ratio r ~ logU(3/4, 4/3) is resized to the image's size
    (bilinear); then, with b, c, s ~ U(1 - jitter, 1 + jitter): v <- b v, v <- mean(v) + c (v - mean(v)), and for colour
    v <- gray(v) + s (v - gray(v)), where with probability 0.2 s = 0. The result is cut to [0, 1].

    Args:
        images: Images in [0, 1].
        generator: Drawn from, on the host, so that the views do not depend on the device.
        smallest_crop: Smallest part of the image's area that a crop keeps, in (0, 1].
        jitter: Strength of the changes of colour, 0 or more; 0 changes nothing.

    Shape: (N, C, H, W) to (N, C, H, W).

    Note: SimCLR also rotates hues and, on large images, blurs; neither is done here.

    References: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
        arXiv:2002.05709.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).to(images, non_blocking=True)

    area, stretch = uniform(smallest_crop, 1.0), uniform(-1.0, 1.0)
    aspect = (4 / 3) ** stretch
    height, width = (area / aspect).sqrt().clamp(max=1.0), (area * aspect).sqrt().clamp(max=1.0)
    mirror = 1.0 - 2.0 * (uniform(0.0, 1.0) < 0.5).to(images)
    theta = images.new_zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * width, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1.0, 1.0) * (1 - width), uniform(-1.0, 1.0) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    view = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (
        uniform(max(0.0, 1 - jitter), 1 + jitter)[:, None, None, None] for _ in range(3)
    )
    view = view * brightness
    average = view.mean((1, 2, 3), keepdim=True)
    view = average + contrast * (view - average)
    if images.shape[1] == 3:
        gray_at_all = (uniform(0.0, 1.0) < (0.2 if jitter else 0.0)).to(images)[:, None, None, None]
        luma = torch.tensor(_LUMA, dtype=view.dtype).to(view.device, non_blocking=True)
        gray = (view * luma[:, None, None]).sum(1, keepdim=True)
        view = gray + saturation * (1 - gray_at_all) * (view - gray)
    return view.clamp(0.0, 1.0)


def grid_patches(images: Tensor, size: int, stride: int) -> Tensor:
    """Cut every image into overlapping square patches, row by row.

    Patch (i, j) holds the pixels from (i stride, j stride) on; pixels that no whole patch covers are left out.

    Args:
        images: Shape (N, C, H, W), H and W at least `size`.
        size: Pixels a side.
        stride: Pixels between two patches, at least 1.

    Shape: (N R S, C, size, size) with R = (H - size) // stride + 1 rows and S columns; image by image.
    """
    patches = images.unfold(2, size, stride).unfold(3, size, stride)
    return patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1], size, size)


def grid_shape(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """Return how many rows and columns of patches `grid_patches` cuts."""
    return (height - size) // stride + 1, (width - size) // stride + 1
