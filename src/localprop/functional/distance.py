"""Distances between what was predicted and what came."""

from __future__ import annotations

from torch import Tensor

from localprop.functional.precision import at_least_single


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of a sample, averaged over the batch: (1/N) sum_n ||predicted_n - target_n||^2.

    The sum runs over all units of a sample, so the gradient of one sample does not shrink with the block's size.

    Args:
        predicted: Shape (N, ...).
        target: The same shape.

    Shape: scalar, in at least float32.
    """
    difference = at_least_single(predicted) - target
    return difference.square().flatten(1).sum(1).mean()
