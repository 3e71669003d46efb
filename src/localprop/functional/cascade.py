"""The cascade of predictors: sparsemax, and predictors in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def sparsemax(logits: Tensor) -> Tensor:
    """Return the Euclidean projection of each row onto the simplex: p_k = max(z_k - tau, 0), rows sum to 1.

    With z sorted descending, k = max{k : 1 + k z_(k) > sum_{i<=k} z_(i)} and tau = (sum_{i<=k} z_(i) - 1) / k.

    Args:
        logits: z. Shape (N, Z).

    Shape: (N, Z).

    References: Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016, arXiv:1602.02068.
    """
    return (logits - _threshold(logits)).clamp(min=0)


def sparsemax_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of -z_y + (1/2) sum_{i in S} (z_i^2 - tau^2) + 1/2, whose gradient is sparsemax(z) - onehot(y).

    Args:
        logits: z. Shape (N, Z).
        target: Class indices. Shape (N,), int64.

    Shape: scalar, 0 or more. S is the support of sparsemax(z).

    References: As `sparsemax`.
    """
    threshold = _threshold(logits)
    in_support = (logits > threshold).to(logits.dtype)
    support_term = (in_support * (logits**2 - threshold**2)).sum(1)
    return (support_term / 2 - logits.gather(1, target[:, None]).squeeze(1) + 0.5).mean()


def _threshold(logits: Tensor) -> Tensor:
    ordered = logits.sort(1, descending=True).values
    sums = ordered.cumsum(1)
    counts = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    size = (1 + counts * ordered > sums).sum(1, keepdim=True).clamp(min=1)  # 0 if a logit is not a number
    return (sums.gather(1, size - 1) - 1) / size


def ridge_weights(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Solve (H^T H + lambda s I) V = H^T Y, with s = trace(H^T H) / P the mean square of a feature times N.

    Args:
        gram: H^T H. Shape (P, P).
        cross: H^T Y. Shape (P, Z).
        ridge: lambda >= 0, relative to the features' size.

    Shape: V is (P, Z). At lambda 0 the solution of least norm.
    """
    if ridge == 0:
        inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
        return inverse @ cross
    scale = gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(gram + ridge * scale * identity, cross)
    return solution
