"""The local prediction loss of Nokland and Eidnes (ICML 2019): pool, flatten, one linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .scalars import dot, mean


def pool_kernel(channels: int, height: int, width: int, budget: int) -> tuple[int, int]:
    """Double the kernel, height first and then in turn, until C h w <= budget or it covers the map.

    h = ceil(height / kh) and w = ceil(width / kw): only rounding up gives the published 1,024 features of a
    28x28 image.
    """
    kh, kw = 1, 1
    height_is_next = True
    while channels * math.ceil(height / kh) * math.ceil(width / kw) > budget:
        if kh >= height and kw >= width:
            break
        if height_is_next:
            kh = min(2 * kh, height)
        else:
            kw = min(2 * kw, width)
        height_is_next = not height_is_next
    return kh, kw


def pooled_features(h: Tensor, budget: int) -> Tensor:
    """(N, C, H, W) -> (N, C h w), channels first; a window that overhangs averages the entries it has.

    A flat (N, D) is returned as it is.
    """
    if h.dim() == 2:
        return h
    samples, channels, height, width = h.shape
    kh, kw = pool_kernel(channels, height, width, budget)
    rows = []
    for n in range(samples):
        row = []
        for c in range(channels):
            for top in range(0, height, kh):
                for left in range(0, width, kw):
                    window = [
                        h[n, c, i, j]
                        for i in range(top, min(top + kh, height))
                        for j in range(left, min(left + kw, width))
                    ]
                    row.append(mean(window))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def pred_logits(h: Tensor, weight: Tensor, bias: Tensor, budget: int) -> Tensor:
    """(N, Z) from weight (Z, C h w) and bias (Z)."""
    features = pooled_features(h, budget)
    samples, inputs = features.shape
    classes = weight.shape[0]
    logits = []
    for n in range(samples):
        vector = [features[n, p] for p in range(inputs)]
        scores = [dot([weight[z, p] for p in range(inputs)], vector) + bias[z] for z in range(classes)]
        logits.append(torch.stack(scores))
    return torch.stack(logits)
