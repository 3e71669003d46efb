"""The predictors of the Cascaded Forward algorithm."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional import feedback
from localprop.functional.cascade import sparsemax, sparsemax_loss
from localprop.functional.pooling import num_pooled_features, pool_to_budget
from localprop.functional.precision import at_least_single, full_precision
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss

Reading = Literal["softmax", "sparsemax"]
"""How logits become probabilities."""


def probabilities(logits: Tensor, reading: Reading) -> Tensor:
    """Return class probabilities, shape (N, Z)."""
    return logits.softmax(1) if reading == "softmax" else sparsemax(logits)


def reading_loss(logits: Tensor, target: Tensor, reading: Reading) -> Tensor:
    """Return the loss whose gradient is the probabilities less the one-hot target, over N."""
    return F.cross_entropy(logits, target) if reading == "softmax" else sparsemax_loss(logits, target)


class CascadePrediction(Objective):
    """Train a predictor without bias on a block that stays as it is.

    L = loss(W flatten(pool(sg[h])), y): cross-entropy, whose gradient is (softmax(z) - onehot(y)) h^T, or the sparsemax
    loss, with sparsemax(z) in its place. W starts at ones.

    Args:
        spec: The block.
        reading: "softmax" or "sparsemax".
        feature_budget: Most features that the predictor reads, by average pooling; at least 1.

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: Z P parameters, P <= max(feature_budget, C). No graph of the block is needed.

    Raises:
        ValueError: The budget is below 1.

    Note: The published predictors read every feature; a large budget does that.

    References: Zhao et al., "The Cascaded Forward Algorithm for Neural Network Training", arXiv:2303.09728.
    """

    def __init__(self, spec: BlockSpec, *, reading: Reading = "softmax", feature_budget: int = 2048) -> None:
        super().__init__(spec)
        self.reading = reading
        self.feature_budget = feature_budget
        num_features = num_pooled_features(spec.standard_shape, feature_budget)
        self.weight = nn.Parameter(torch.ones(spec.num_classes, num_features))

    def features(self, h: Tensor) -> Tensor:
        """Return what the predictor reads, shape (N, P), in at least float32."""
        return pool_to_budget(self.laid_out(h), self.feature_budget)

    def logits(self, h: Tensor) -> Tensor:
        """Return the predictor's logits, shape (N, Z)."""
        with full_precision(h):
            return F.linear(self.features(h), self.weight)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the predictor on `sg[h]`."""
        logits = self.logits(h.detach())
        return LocalLoss(reading_loss(logits, batch.target, self.reading), logits)


class CascadeFeedback(CascadePrediction):
    """Train the predictor, and the block by the predictor's error through a fixed random matrix.

    With e = softmax(z) - onehot(y) the predictor's weights get e h^T, and the block gets e B in the place of e W as the
    error of its (pooled) output.

    Args:
        spec: The block.
        feature_budget: As `CascadePrediction`.

    Shape: h as `CascadePrediction`; B (Z, P).

    Cost: Z P parameters and as many fixed numbers.

    Note: B is drawn from U(-b, b), b = sqrt(6 / P), as for direct feedback alignment.

    References: As `CascadePrediction`; Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks",
        NeurIPS 2016.
    """

    feedback: Tensor

    def __init__(self, spec: BlockSpec, *, feature_budget: int = 2048) -> None:
        super().__init__(spec, feature_budget=feature_budget)
        self.register_buffer("feedback", nn.init.kaiming_uniform_(torch.empty_like(self.weight.detach())))

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        with full_precision(h):
            logits = feedback.linear(self.features(h), self.weight, feedback=self.feedback)
        return LocalLoss(F.cross_entropy(logits, batch.target), logits)


class CascadeOutput(Objective):
    """Train the last block, whose output is the last predictor's logits, by the loss of the cascade.

    Args:
        spec: The block.
        reading: "softmax", for cross-entropy, or "sparsemax".

    Shape: h (N, Z).

    Cost: no parameters.
    """

    def __init__(self, spec: BlockSpec, *, reading: Reading = "softmax") -> None:
        super().__init__(spec)
        self.reading = reading

    def logits(self, h: Tensor) -> Tensor:
        """Return `h` itself, in at least float32."""
        return at_least_single(h)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the logits `h`."""
        logits = self.logits(h)
        return LocalLoss(reading_loss(logits, batch.target, self.reading), logits)
