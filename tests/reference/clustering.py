"""Layer-wise clustering (Malach and Shalev-Shwartz 2018): k-means over positions, each replaced by its cluster.

Lloyd's algorithm from given centres. A point belongs to its nearest centre, the first one on ties; a centre without
points stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import average_positions, cross_entropy
from .scalars import matrix_vector
from .training import Block, _gradients, _leaves


class LevelStep(NamedTuple):
    """What one batch says of one level: gradients of the block and of its head [weight, bias]."""

    loss: Tensor
    gradients: list[Tensor]
    head_gradients: list[Tensor]


def positions(h: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C), (N, K, C) -> (N K, C): sample by sample and row by row; (N, C) stays."""
    if h.dim() == 4:
        samples, channels, height, width = h.shape
        rows = [
            [h[n, c, i, j].item() for c in range(channels)]
            for n in range(samples)
            for i in range(height)
            for j in range(width)
        ]
    elif h.dim() == 3:
        rows = [h[n, k].tolist() for n in range(h.shape[0]) for k in range(h.shape[1])]
    else:
        rows = h.tolist()
    return torch.tensor(rows, dtype=torch.float64)


def assign(points: Tensor, centres: Tensor) -> list[int]:
    """Index of every point's nearest centre by squared distance."""
    clusters = []
    for point in points.tolist():
        distances = [sum((p - c) ** 2 for p, c in zip(point, centre, strict=True)) for centre in centres.tolist()]
        clusters.append(distances.index(min(distances)))
    return clusters


def inertia(points: Tensor, centres: Tensor) -> float:
    """Sum of the points' squared distances to their centres."""
    rows, means = points.tolist(), centres.tolist()
    return sum(
        sum((p - c) ** 2 for p, c in zip(rows[k], means[cluster], strict=True))
        for k, cluster in enumerate(assign(points, centres))
    )


def move_centres(points: Tensor, clusters: Sequence[int], centres: Tensor) -> Tensor:
    """The mean of every cluster's points."""
    rows = points.tolist()
    moved = []
    for z, centre in enumerate(centres.tolist()):
        own = [rows[k] for k in range(len(rows)) if clusters[k] == z]
        moved.append([sum(row[a] for row in own) / len(own) for a in range(len(centre))] if own else centre)
    return torch.tensor(moved, dtype=torch.float64)


def k_means(points: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Assign and move `iterations` times, or until no assignment changes; return the centres."""
    before: list[int] | None = None
    for _ in range(iterations):
        clusters = assign(points, centres)
        if clusters == before:
            break
        centres = move_centres(points, clusters, centres)
        before = clusters
    return centres


def replace_by_clusters(
    h: Tensor,
    centres: Tensor,
    code: Literal["centre", "onehot", "embedding"] = "centre",
    embeddings: Tensor | None = None,
) -> Tensor:
    """Replace every position of h by its cluster's centre, one-hot index or given embedding (clusters, C').

    The channels' axis takes the code's width: (N, C, H, W) -> (N, C', H, W), (N, K, C) -> (N, K, C').
    """
    if code == "onehot":
        table = torch.eye(centres.shape[0], dtype=torch.float64)
    elif code == "centre":
        table = centres
    elif embeddings is None:
        raise ValueError("embeddings must be given for code='embedding', got None")
    else:
        table = embeddings
    clusters = assign(positions(h), centres)
    if h.dim() == 4:
        samples, _, height, width = h.shape
        result = torch.zeros(samples, table.shape[1], height, width, dtype=torch.float64)
        for n in range(samples):
            for i in range(height):
                for j in range(width):
                    result[n, :, i, j] = table[clusters[(n * height + i) * width + j]]
        return result
    replaced = torch.stack([table[cluster] for cluster in clusters])
    return replaced.reshape(*h.shape[:-1], table.shape[1])


def level_step(block: Block, theta: list[Tensor], head: list[Tensor], x: Tensor, y: Tensor) -> LevelStep:
    """Cross-entropy of a linear head [weight, bias] on the output averaged over all positions; x is detached."""
    theta = _leaves(theta)
    weight, bias = _leaves(head)
    averaged = average_positions(block(x.detach(), theta))
    rows = []
    for n in range(averaged.shape[0]):
        scores = matrix_vector(weight, [averaged[n, c] for c in range(averaged.shape[1])])
        rows.append(torch.stack([scores[z] + bias[z] for z in range(len(scores))]))
    loss = cross_entropy(torch.stack(rows), y)
    gradients = _gradients(loss, [*theta, weight, bias])
    return LevelStep(loss.detach(), gradients[:-2], gradients[-2:])
