"""Auxiliary networks: a block is trained through a small network that predicts the label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective, prediction_loss
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class AuxiliaryNetwork(Objective):
    """Train a block by the cross-entropy of an auxiliary network on its output: L = CE(W a(h) + b, y).

    Args:
        spec: The block.
        features: a, from the block's output as `laid_out` gives it to features, shape (N, P); see
            `localprop.objectives.heads`.
        num_targets: Number of classes of the targets; default Z.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: the parameters of a, and Z (P + 1). The memory of its graph, beside the block's.

    References: Belilovsky, Eickenberg and Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020.
    """

    def __init__(self, spec: BlockSpec, features: nn.Module, *, num_targets: int | None = None) -> None:
        super().__init__(spec)
        self.features = features
        self.classifier = nn.Linear(num_features(features, spec.standard_shape), num_targets or spec.num_classes)

    def logits(self, h: Tensor) -> Tensor:
        """Return the auxiliary network's logits, shape (N, Z)."""
        features = self.features(self.laid_out(h))
        with full_precision(h):
            logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
            return logits

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        return prediction_loss(self.logits(h), batch.target)


def num_features(features: nn.Module, shape: tuple[int, ...]) -> int:
    """Return P of a module h -> features by running it on zeros, in evaluation mode and back.

    Args:
        features: Maps (N, *shape) to (N, P).
        shape: One sample.
    """
    features.eval()
    with torch.no_grad():
        width = features(torch.zeros(1, *shape)).shape[1]
    features.train()
    return int(width)
