"""A classifier of several layers as local loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from localprop.objectives.base import Objective, Scored, prediction_loss
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class HeadPrediction(Objective):
    """Train a block by the cross-entropy of an auxiliary network: L = CE(head(h), y).

    Args:
        spec: The block.
        head: Makes the logits, shape (N, Z), in at least float32.
        scored: The block's "output", or its "activation", before closing pooling and dropout.

    Shape: h (N, C, H, W), (N, K, C) or (N, D), as the head takes it.

    Cost: the head's parameters.
    """

    head: Callable[[Tensor], Tensor]

    def __init__(self, spec: BlockSpec, head: nn.Module, *, scored: Scored = "output") -> None:
        super().__init__(spec, scored)
        self.head = head

    def logits(self, h: Tensor) -> Tensor:
        """Return the head's logits, shape (N, Z)."""
        return self.head(self.laid_out(h))

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h`."""
        return prediction_loss(self.logits(h), batch.target)
