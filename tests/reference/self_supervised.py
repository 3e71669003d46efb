"""Contrast without labels: SimCLR's loss on two views, and the patch prediction of Greedy InfoMax and CPC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import LinearLayer, adaptive_average_pool, apply_linears
from .scalars import dot, l2_normalised, logsumexp, matrix_vector, mean


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Average over all 2N views i of -log exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau), with j the other view of i.

    first and second (N, D) hold one view a row; s is the cosine.
    """
    samples, width = first.shape
    views = [*(first[n] for n in range(samples)), *(second[n] for n in range(samples))]
    normalised = [l2_normalised([view[d] for d in range(width)]) for view in views]
    losses = []
    for i in range(2 * samples):
        other = i + samples if i < samples else i - samples
        scores = [dot(normalised[i], normalised[k]) / temperature for k in range(2 * samples)]
        losses.append(logsumexp([scores[k] for k in range(2 * samples) if k != i]) - scores[other])
    return mean(losses)


def projection_head(h: Tensor, linears: Sequence[LinearLayer]) -> Tensor:
    """SimCLR's g: the average over space of (N, C, H, W), then linear layers with ReLU between them."""
    if h.dim() == 4:
        h = adaptive_average_pool(h, 1, 1).reshape(h.shape[0], -1)
    return apply_linears(h, linears)


def image_patches(image: Tensor, size: int, stride: int) -> Tensor:
    """Cut every image of (N, C, H, W) into patches: (N, rows, columns, C, size, size)."""
    samples, channels, height, width = image.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    patches = torch.empty(samples, rows, columns, channels, size, size, dtype=image.dtype)
    for n in range(samples):
        for i in range(rows):
            for j in range(columns):
                patches[n, i, j] = image[n, :, i * stride : i * stride + size, j * stride : j * stride + size]
    return patches


def row_prediction_loss(z: Tensor, c: Tensor, weight: Tensor, offset: int, negatives: Tensor) -> Tensor:
    """InfoNCE for the patches `offset` rows below: cross-entropy of the true one against the given negatives.

    log f(z', c_t) = z'^T W c_t, for every sample, column, and row t with t + offset inside the grid; averaged over
    them. z and c are (N, C, rows, columns), W is (C, C). negatives (N, rows - offset, columns, M, 3) holds
    (sample, row, column) of the M patches of z that context (n, t, column) is contrasted with.
    """
    samples, channels, rows, columns = z.shape
    losses = []
    for n in range(samples):
        for t in range(rows - offset):
            for j in range(columns):
                prediction = matrix_vector(weight, [c[n, d, t, j] for d in range(channels)])
                places = [(n, t + offset, j), *(tuple(place) for place in negatives[n, t, j].tolist())]
                scores = [dot([z[m, d, row, col] for d in range(channels)], prediction) for m, row, col in places]
                losses.append(logsumexp(scores) - scores[0])
    return mean(losses)


def patch_prediction_loss(
    z: Tensor, c: Tensor, weights: Sequence[Tensor], negatives: Sequence[Tensor], skip: int = 1
) -> Tensor:
    """Average of `row_prediction_loss` over k = 1 .. len(weights), each at k + skip rows below with its own W_k.

    Seven rows, five weights and skip = 1 leave one row of contexts for the farthest. In Greedy InfoMax every module
    has this loss on its own z (c = z where there is no recurrent part) and a detached input; CPC has it once.
    """
    return mean([row_prediction_loss(z, c, weights[k], k + 1 + skip, negatives[k]) for k in range(len(weights))])
