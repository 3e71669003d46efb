"""The loss of the last block, whose output is the network's own logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from localprop.functional.precision import at_least_single
from localprop.objectives.base import Objective
from localprop.types import LocalBatch, LocalLoss


class CrossEntropy(Objective):
    """Train the last block by cross-entropy: L = -(1/N) sum_n log softmax(h_n)[y_n].

    Shape: h (N, Z).

    Cost: no parameters.
    """

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the logits `h`."""
        logits = self.logits(h)
        return LocalLoss(F.cross_entropy(logits, batch.target), logits)

    def logits(self, h: Tensor) -> Tensor:
        """Return `h` itself, in at least float32."""
        return at_least_single(h)
