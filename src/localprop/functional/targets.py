"""Targets that a block learns beside or instead of the label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spaced(index: int, count: int, first: int, last: int) -> int:
    """Return entry `index` of `count` numbers spaced evenly from `first` to `last`, each cut to an integer.

    Args:
        index: 0 .. count - 1.
        count: At least 1; a single entry is `first`.
        first: The first number.
        last: The last number.
    """
    return first + (last - first) * index // max(count - 1, 1)


def shifted_image(image: Tensor, shift: int) -> Tensor:
    """Move an image by `shift` pixels down and to the right; what leaves on one side comes in on the other.

    Args:
        image: Shape (N, C, H, W).
        shift: Any integer; H and W are periods.

    Shape: (N, C, H, W).

    References: Code of a thesis on local learning, github.com/AlonNT/Thesis.
    """
    return torch.roll(image, (shift, shift), dims=(2, 3)) if shift else image


def class_groups(target: Tensor, num_groups: int, num_classes: int) -> Tensor:
    """Group neighbouring classes: g(y) = floor(y G / Z), groups of Z / G classes up to rounding.

    Args:
        target: Class indices. Shape (N,).
        num_groups: G, 1 .. Z.
        num_classes: Z.

    Shape: (N,).
    """
    return target * num_groups // num_classes


def as_numbers(target: Tensor, num_outputs: int) -> Tensor:
    """Return real-valued targets as they are, and class indices as one-hot rows.

    Args:
        target: Shape (N, T), floating; or class indices, shape (N,), int64.
        num_outputs: T.

    Shape: (N, T).
    """
    return target if target.is_floating_point() else F.one_hot(target, num_outputs)


def rotated_image(image: Tensor, quarters: Tensor) -> Tensor:
    """Turn each image counter-clockwise by its number of quarter turns.

    Args:
        image: Square images. Shape (N, C, S, S).
        quarters: 0 .. 3 for each. Shape (N,).

    Shape: (N, C, S, S).

    References: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
        ICLR 2018, arXiv:1803.07728.
    """
    turned = torch.stack([torch.rot90(image, turns, (2, 3)) for turns in range(4)])
    return turned[quarters, torch.arange(len(image), device=image.device)]


def logit_gradient(logits: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy by the logits: (softmax(z_n) - onehot(y_n)) / N.

    Args:
        logits: Shape (N, Z).
        target: Class indices. Shape (N,).

    Shape: (N, Z), without a graph.
    """
    logits = logits.detach()
    return (logits.softmax(1) - F.one_hot(target, logits.shape[1])) / len(logits)


def mixed_loss(loss: Tensor, logits: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """Mix a gradient from elsewhere into that of a block's logits: (1 - w) L_l + w sum_n <sg[g_n], z_{l,n}>.

    Its gradient by z_l is (1 - w) dL_l/dz_l + w g.

    Args:
        loss: L_l, a scalar.
        logits: z_l. Shape (N, Z).
        gradient: g, for a mean over the batch: it carries the factor 1/N. Shape (N, Z).
        weight: w, 0 .. 1.

    Note: The published code averages the products over a batch for which g is a mean already, which makes its second
        term N times smaller than that of its form with hooks. This is the form with hooks.

    References: Code of a thesis on local learning, github.com/AlonNT/Thesis.
    """
    return (1 - weight) * loss + weight * (gradient.detach() * logits).sum()
