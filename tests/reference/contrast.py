"""Supervised contrastive loss over the pairs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .scalars import dot, l2_normalised, logsumexp, mean


def supervised_contrastive_loss(features: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
    """Average over anchors i of -mean_{j in P(i)} log(exp(a_i a_j / tau) / sum_{k != i} exp(a_i a_k / tau)).

    P(i) holds the other samples of i's class; an anchor without any contributes 0 and still counts in N.
    """
    samples, channels = features.shape
    a = [l2_normalised([features[n, c] for c in range(channels)]) for n in range(samples)]
    losses = []
    for i in range(samples):
        log_probabilities = []
        for j in range(samples):
            if j == i or int(y[j]) != int(y[i]):
                continue
            others = [dot(a[i], a[k]) / temperature for k in range(samples) if k != i]
            log_probabilities.append(dot(a[i], a[j]) / temperature - logsumexp(others))
        if log_probabilities:
            losses.append(-mean(log_probabilities))
        else:
            losses.append(torch.zeros((), dtype=torch.float64))
    return mean(losses)
