"""The local prediction loss: one linear layer a block."""

from __future__ import annotations

from torch import Tensor, nn

from localprop.functional.pooling import num_pooled_features, pool_to_budget
from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective, Scored, prediction_loss
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class LinearPrediction(Objective):
    """Train a block by the cross-entropy of a linear classifier on its pooled output.

    L = CE(W flatten(pool(h)) + b, y), where pool is the average pooling that leaves at most `feature_budget` features.

    Args:
        spec: The block.
        feature_budget: Most features that the classifier reads; at least 1.
        scored: The block's "output", or its "activation", before closing pooling and dropout (published).
        zero_classifier: Whether the classifier starts at zero (published), where the block gets no gradient yet.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: Z (P + 1) parameters a block, P <= max(feature_budget, C).

    Raises:
        ValueError: The budget is below 1, or `scored` is neither.

    Note: The published loss reads the activation, and its classifier starts at zero; here the defaults are those of
        the other objectives.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        feature_budget: int = 2048,
        scored: Scored = "output",
        zero_classifier: bool = False,
    ) -> None:
        super().__init__(spec, scored)
        self.feature_budget = feature_budget
        self.classifier = nn.Linear(num_pooled_features(self.scored_shape, feature_budget), spec.num_classes)
        if zero_classifier:
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def logits(self, h: Tensor) -> Tensor:
        """Return the classifier's logits, shape (N, Z)."""
        features = pool_to_budget(self.laid_out(h), self.feature_budget)
        with full_precision(h):
            logits: Tensor = self.classifier(features)
            return logits

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        return prediction_loss(self.logits(h), batch.target)
