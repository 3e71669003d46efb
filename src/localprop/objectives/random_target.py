"""Direct random target projection: a block learns from its label alone, with no error and no prediction."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from localprop.functional.feedback import draw_projection, target_projection_loss
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class RandomTargetProjection(Objective):
    """Train a block by its label, projected to its activation by a fixed random matrix.

    L = (1/N) sum_n <h_n, B_{y_n}>, so dL/dh_n = B_{y_n} / N: the one-hot target is projected in the place of the error.
    Nothing has to come back, so a block is updated during the forward pass.

    Args:
        spec: The block.

    Shape: h (N, *activation); B (Z, *activation).

    Cost: Z numbers a unit of the activation; no parameters.

    Note: The block makes no prediction. The loss has no lower bound of its own: normalisation or a saturating
        nonlinearity bounds it.

    References: Frenkel, Lefebvre and Bol, "Learning Without Feedback: Fixed Random Learning Signals Allow for
        Feedforward Training of Deep Neural Networks", Frontiers in Neuroscience 2021, arXiv:1909.01311.
    """

    reads: Literal["output", "activation"] = "activation"

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.matrix: Tensor
        self.register_buffer("matrix", draw_projection(spec.num_classes, spec.activation_shape))

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the activation `h`."""
        return LocalLoss(target_projection_loss(h, batch.target, self.matrix))
