"""What every analysis refuses."""

from __future__ import annotations

import torch
from torch import Tensor


def check_features(name: str, features: Tensor, *, fewest: int = 2) -> None:
    """Refuse what is not one finite feature vector a sample.

    Args:
        name: What the tensor is called in the message.
        features: Shape (N, P).
        fewest: Samples that the analysis needs.

    Raises:
        ValueError: Another shape or type, too few samples, no features, or numbers that are not finite.
    """
    if features.dim() != 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name}: need one feature vector a sample, shape (N, P), got shape {tuple(features.shape)}; "
            "average or flatten the positions first"
        )
    if not features.is_floating_point():
        raise ValueError(f"{name}: must be floating-point numbers, got {features.dtype}; use {name}.float()")
    if len(features) < fewest:
        raise ValueError(f"{name}: need at least {fewest} samples, got {len(features)}; give more of them")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name}: must be finite, got NaN or infinity; the network that made them has diverged")


def check_target(name: str, target: Tensor, num_samples: int, num_classes: int | None = None) -> None:
    """Refuse what is not one class index a sample.

    Raises:
        ValueError: Another shape, numbers that are no indices, or indices out of range.
    """
    if target.shape != (num_samples,) or target.dtype != torch.int64:
        raise ValueError(
            f"{name}: need one int64 class index for each of the {num_samples} samples, got {target.dtype} of shape "
            f"{tuple(target.shape)}; use {name}.long()"
        )
    if num_samples and (int(target.min()) < 0 or (num_classes is not None and int(target.max()) >= num_classes)):
        allowed = "be 0 or more" if num_classes is None else f"lie in 0 .. {num_classes - 1}"
        raise ValueError(f"{name}: labels must {allowed}, got {int(target.min())} .. {int(target.max())}")


def class_means(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that have samples, shape (C,), and the means of their samples, shape (C, P)."""
    counts = torch.bincount(target)
    present = counts.nonzero().flatten()
    sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, target, features)
    return present, sums[present] / counts[present, None]
