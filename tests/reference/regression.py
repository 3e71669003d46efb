"""Least squares at one block: a linear layer on pooled features, and the mean squared error of what it gives."""

from __future__ import annotations

import torch
from torch import Tensor

from .prediction import pred_logits
from .scalars import mean


def one_hot(y: Tensor, outputs: int) -> Tensor:
    """(N,) classes -> (N, T) of zeros and ones."""
    return torch.tensor([[1.0 if int(label) == t else 0.0 for t in range(outputs)] for label in y], dtype=torch.float64)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(1/(N T)) sum_nt (p_nt - y_nt)^2; both are (N, T)."""
    samples, outputs = predicted.shape
    return mean([(predicted[n, t] - target[n, t]) ** 2 for n in range(samples) for t in range(outputs)])


def regression_loss(h: Tensor, target: Tensor, weight: Tensor, bias: Tensor, budget: int) -> Tensor:
    """Squared error of W pool(h) + b; weight is (T, P), bias (T)."""
    return squared_error(pred_logits(h, weight, bias, budget), target)
