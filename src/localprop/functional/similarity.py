"""Similarity matching and its targets.

References:
    Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.precision import at_least_single


def similarity_features(h: Tensor) -> Tensor:
    """Return the rows that samples are compared by: each channel's standard deviation over positions.

    A flat output, a map of at most 3 channels, or a map of height 1 (tokens: a single one) is flattened instead.

    Args:
        h: Block output. Shape (N, C, H, W), (N, K, C) or (N, D).

    Shape: (N, C) or flattened (N, P), in at least float32.

    Note: The deviation is the unbiased one; its scale cancels in `adjusted_cosine`.
    """
    h = at_least_single(h)
    if h.dim() == 4 and h.shape[1] > 3 and h.shape[2] > 1:
        return h.std((2, 3))
    if h.dim() == 3 and h.shape[2] > 3 and h.shape[1] > 1:
        return h.std(1)
    return h.flatten(1)


def adjusted_cosine(features: Tensor) -> Tensor:
    """Return the adjusted cosine similarity of every two rows: the cosine of rows less their own means.

    S_ij = <c_i, c_j> / (|c_i| |c_j|), c_i = a_i - mean(a_i), clamped to [-1, 1]. A constant row has similarity 0.

    Args:
        features: Shape (N, P).

    Shape: (N, N).
    """
    centred = features - features.mean(1, keepdim=True)
    unit = F.normalize(centred, dim=1, eps=1e-8)
    return (unit @ unit.T).clamp(-1, 1)


def label_similarity(target: Tensor, num_classes: int) -> Tensor:
    """Return the adjusted cosine similarity of one-hot labels: 1 for one class, -1 / (Z - 1) for two.

    Shape: target (N,), result (N, N), in the default dtype.
    """
    same = target[:, None] == target[None, :]
    return torch.where(same, 1.0, -1.0 / (num_classes - 1))


def similarity_loss(features: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference between the similarities of a batch and the wanted ones.

    L = (1/N^2) sum_ij (S_ij(features) - wanted_ij)^2.

    Args:
        features: Shape (N, P).
        wanted: Shape (N, N).

    Cost: N^2 similarities.
    """
    return F.mse_loss(adjusted_cosine(features), wanted.to(features.dtype))
