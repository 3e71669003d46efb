"""The local prediction loss: one linear layer a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.dictionary import information_bound
from localprop.functional.pooling import pool_to_budget
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class LinearPrediction(Objective):
    """Train a block by the cross-entropy of a linear classifier on its pooled output.

    L = CE(W flatten(pool(h)) + b, y), where pool is the average pooling that leaves at most `feature_budget` features.

    Args:
        spec: The block.
        feature_budget: Most features that the classifier reads; at least 1.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: Z (P + 1) parameters a block, P <= max(feature_budget, C).

    Raises:
        ValueError: The budget is below 1.

    Note: The published loss reads a block before its max pool and dropout; here, as for every objective, it reads the
        block's output.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
    """

    def __init__(self, spec: BlockSpec, *, feature_budget: int = 2048) -> None:
        super().__init__(spec)
        if feature_budget < 1:
            raise ValueError(f"feature_budget: must be at least 1, got {feature_budget}")
        self.feature_budget = feature_budget
        num_features = pool_to_budget(torch.zeros(1, *spec.shape), feature_budget).shape[1]
        self.classifier = nn.Linear(num_features, spec.num_classes)

    def logits(self, h: Tensor) -> Tensor:
        """Return the classifier's logits, shape (N, Z)."""
        features = pool_to_budget(h, self.feature_budget)
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.classifier(features)
            return logits

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        logits = self.logits(h)
        loss = F.cross_entropy(logits, batch.target)
        return LocalLoss(loss, logits, {"bound_nats": information_bound(loss, self.spec.num_classes)})
