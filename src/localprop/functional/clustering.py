"""Clusters of features: k-means by Lloyd's algorithm, and each position's nearest centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_centres(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of each point's nearest centre, the first one on ties.

    argmin_k ||p - c_k||^2 = argmin_k (||c_k||^2 / 2 - <p, c_k>).

    Args:
        points: Shape (..., C).
        centres: Shape (K, C).

    Shape: (...), int64.

    Cost: K numbers a point.
    """
    return torch.add(centres.square().sum(1) / 2, points @ centres.T, alpha=-1).argmin(-1)


def spread_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw points to start k-means from: the first uniformly, each other one by its squared distance to those before.

    Args:
        points: Shape (P, C), P >= 1.
        count: K.
        generator: Source of randomness, on the points' device.

    Shape: (K, C). With fewer than K different points some centres are equal; all but the first of them stay empty.

    References: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator, device=points.device))]
    distances = torch.full_like(points[:, 0], torch.inf)
    while len(chosen) < count:
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(1))
        weights = distances.nan_to_num(0.0, 0.0)  # a diverged block's: its loss tells, not this
        weights = weights + (weights.sum() == 0)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return points[chosen]


def k_means(points: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Move every centre to the mean of the points that are nearest to it, until no point changes its centre.

    A centre without points stays where it is.

    Args:
        points: Shape (P, C).
        centres: Where to start. Shape (K, C).
        iterations: Most moves, at least 0.

    Shape: (K, C).

    Cost: P K numbers.

    References: Lloyd, "Least Squares Quantization in PCM", IEEE Transactions on Information Theory, 1982.
    """
    before = None
    for _ in range(iterations):
        nearest = nearest_centres(points, centres)
        if before is not None and torch.equal(nearest, before):
            break
        members = F.one_hot(nearest, len(centres)).to(points.dtype)  # a product gives the same bits on every device
        sizes = members.sum(0)[:, None]
        centres = torch.where(sizes > 0, members.T @ points / sizes.clamp(min=1), centres)
        before = nearest
    return centres
