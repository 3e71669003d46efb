"""A linear probe: what a classifier reads in a block that it does not train."""

from __future__ import annotations

from torch import Tensor

from localprop.objectives.prediction import LinearPrediction
from localprop.types import LocalBatch, LocalLoss


class Probe(LinearPrediction):
    """Train a linear classifier on a block's detached output; the block itself gets no gradient.

    L = CE(W flatten(pool(sg[h])) + b, y), with the pooling of `LinearPrediction`.

    Args:
        spec: The block.
        feature_budget: Most features that the classifier reads; at least 1.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: Z (P + 1) parameters a block, P <= max(feature_budget, C). No graph of the block is needed.
    """

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the probe on `sg[h]`."""
        return super().forward(h.detach(), batch)
