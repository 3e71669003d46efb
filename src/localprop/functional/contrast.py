"""Supervised contrastive loss between the samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_contrastive_loss(features: Tensor, target: Tensor, temperature: float = 0.07) -> Tensor:
    """Contrast samples of one class with all others.

    With a_i = features_i / ||features_i|| and P(i) = {j != i : y_j = y_i}:
        L = -(1/N) sum_i 1/max(|P(i)|, 1) sum_{j in P(i)} log [ exp(a_i.a_j / tau) / sum_{k != i} exp(a_i.a_k / tau) ].
    An anchor without a positive contributes 0.

    Args:
        features: Shape (N, C).
        target: Class indices. Shape (N,).
        temperature: tau > 0.

    Cost: N^2 similarities.

    References:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362.
    """
    a = F.normalize(features, dim=1)
    logits = a @ a.T / temperature
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    log_probability = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive = (target[:, None] == target[None, :]) & ~itself
    total = log_probability.masked_fill(~positive, 0.0).sum(1)
    return -(total / positive.sum(1).clamp(min=1)).mean()
