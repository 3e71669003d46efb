"""Distances between what was predicted and what came."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of a sample, averaged over the batch: (1/N) sum_n ||predicted_n - target_n||^2.

    The sum runs over all units of a sample, so the gradient of one sample does not shrink with the block's size.

    Args:
        predicted: Shape (N, ...).
        target: The same shape.

    Shape: scalar, in at least float32.
    """
    difference = predicted.to(torch.promote_types(predicted.dtype, torch.float32)) - target
    return difference.square().flatten(1).sum(1).mean()
