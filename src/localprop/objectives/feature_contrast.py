"""L_feat: contrast the averaged features of the batch with each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from localprop.functional.contrast import supervised_contrastive_loss
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class FeatureContrast(Objective):
    """Train a block by the supervised contrastive loss of its averaged features, without an auxiliary network.

    L_feat is `supervised_contrastive_loss(hbar, y, tau)`: the contrastive local loss with f_phi = identity.

    Args:
        spec: The block.
        temperature: tau > 0.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: no parameters; N^2 similarities. It makes no prediction of its own.

    Raises:
        ValueError: The temperature is not positive.

    Note: With about N / Z positives an anchor, small batches of many classes leave anchors without any; these
        contribute nothing. A flat output is averaged over its K chunks, as for the dictionary.

    References: Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary
        Networks", ICLR 2024.
    """

    def __init__(self, spec: BlockSpec, *, temperature: float = 0.07) -> None:
        super().__init__(spec)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: must be positive and finite, got {temperature}")
        self.temperature = temperature

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h` against the rest of the batch."""
        features = self.averaged_features(h)
        with torch.autocast(h.device.type, enabled=False):
            return LocalLoss(supervised_contrastive_loss(features, batch.target, self.temperature))
