"""A block learns by how much images were turned, beside their class."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from localprop.objectives.auxiliary import AuxiliaryNetwork
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class RotationPrediction(Objective):
    """Train a block on a batch and its turned copy: L = L_p(h[:N], y) + w L_r(h[N:], r).

    The first N samples are upright and have targets y, the others are their copies with r quarter turns each.

    Args:
        spec: The block.
        prediction: L_p, which predicts the class.
        rotation: L_r, which predicts one of four turns; None for the last block, whose output has no room for them.
        weight: w > 0.

    Shape: h (2N, C, H, W), (2N, K, C) or (2N, H); targets (2N,), y before r.

    Cost: the parameters of both.

    Raises:
        ValueError: The weight is out of its range.

    References: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
        ICLR 2018, arXiv:1803.07728.
    """

    def __init__(
        self, spec: BlockSpec, prediction: Objective, rotation: AuxiliaryNetwork | None, *, weight: float = 1.0
    ) -> None:
        super().__init__(spec)
        if not 0 < weight < math.inf:
            raise ValueError(f"rotation_weight: must be positive and finite, got {weight}; without it use dgl")
        self.prediction = prediction
        self.rotation = rotation
        self.weight = weight

    def logits(self, h: Tensor) -> Tensor | None:
        """Return the logits of the classes, shape (N, Z), for N upright samples."""
        return self.prediction.logits(h)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score both halves of the block output `h`; the prediction is of the upright one."""
        (upright, turned), (classes, turns) = h.chunk(2), batch.target.chunk(2)
        predicted = self.prediction(upright, replace(batch, target=classes))
        if self.rotation is None:
            return LocalLoss(predicted.loss, predicted.logits)
        rotation = self.rotation(turned, replace(batch, target=turns))
        loss = predicted.loss + self.weight * rotation.loss
        return LocalLoss(loss, predicted.logits, {"rotation_loss": rotation.loss.detach()})
