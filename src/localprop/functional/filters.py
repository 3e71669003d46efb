"""The filters of a first layer, as images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def filter_images(weight: Tensor) -> Tensor:
    """Return filters as images: 0.5 is no weight, and the largest weight of a filter is at 0 or 1.

    Args:
        weight: Shape (O, C, H, W).

    Shape: (O, C, H, W), in [0, 1].
    """
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    return 0.5 + 0.5 * weight / largest.clamp_min(torch.finfo(weight.dtype).tiny)


def first_layer(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, Tensor]:
    """Return the name and the weights of the layer that reads the image, shape (O, C, H, W).

    Raises:
        ValueError: No linear layer or convolution reads all of the image's channels, or its filters are of one pixel.
    """
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d) and isinstance(weight, Tensor) and weight.shape[1] == image_shape[0]:
            if weight.shape[2:].numel() > 1:
                return name, weight.detach()
            break
        if isinstance(module, nn.Linear) and module.in_features == math.prod(image_shape):
            return name, module.weight.detach().view(-1, *image_shape)
        if isinstance(module, nn.Conv2d | nn.Linear):
            break
    raise ValueError("the first layer's filters are no images: it is no convolution or linear layer on whole pixels")
