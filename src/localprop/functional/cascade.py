"""The cascade of predictors: sparsemax, predictors in closed form, and feedback through a fixed matrix."""

from __future__ import annotations

from typing import Any

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


class _FeedbackLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(features, feedback)
        return features @ weight.T

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None]:
        features, feedback = ctx.saved_tensors
        return error @ feedback, error.T @ features, None


def feedback_linear(features: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
    """Return features W^T, with e B in the place of e W as the gradient of the features for an error e at the output.

    Args:
        features: Shape (N, P).
        weight: W. Shape (Z, P).
        feedback: B, fixed. Shape (Z, P).

    Shape: (N, Z).
    """
    output: Tensor = _FeedbackLinear.apply(features, weight, feedback)
    return output
