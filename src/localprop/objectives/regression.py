"""Squared error at every block, for real-valued targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from localprop.functional.precision import at_least_single
from localprop.functional.targets import as_numbers
from localprop.objectives.base import Objective
from localprop.objectives.prediction import LinearPrediction
from localprop.types import LocalBatch, LocalLoss


class LinearRegression(LinearPrediction):
    """Train a block by the squared error of a linear layer on its pooled output.

    L = (1/(N T)) sum_nt (p_nt - y_nt)^2, p = W flatten(pool(h)) + b, with the pooling of `LinearPrediction`. Class
    indices are taken as one-hot targets.

    Args:
        spec: The block; its number of classes is T.
        feature_budget: Most features that the linear layer reads; at least 1.
        scored: The block's "output", or its "activation", before closing pooling and dropout.

    Shape: h (N, C, H, W), (N, K, C) or (N, H); targets (N, T), real, or (N,), classes.

    Cost: T (P + 1) parameters a block, P <= max(feature_budget, C).

    Raises:
        ValueError: The budget is below 1, or `scored` is neither.

    Note: `logits` are the predictions p.

    References: The local loss of Nokland and Eidnes, ICML 2019, with another error.
    """

    real_targets = True

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h`."""
        return _squared_error(self.logits(h), batch.target)


class SquaredError(Objective):
    """Train the last block by the squared error of its output: L = (1/(N T)) sum_nt (h_nt - y_nt)^2.

    Class indices are taken as one-hot targets.

    Shape: h (N, T); targets (N, T), real, or (N,), classes.

    Cost: no parameters.
    """

    real_targets = True

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the predictions `h`."""
        return _squared_error(self.logits(h), batch.target)

    def logits(self, h: Tensor) -> Tensor:
        """Return the predictions `h` themselves, in at least float32."""
        return at_least_single(h)


def _squared_error(predicted: Tensor, target: Tensor) -> LocalLoss:
    numbers = as_numbers(target, predicted.shape[1]).to(predicted.dtype)
    return LocalLoss(F.mse_loss(predicted, numbers), predicted)
