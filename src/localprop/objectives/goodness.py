"""Objectives of the forward-only family that need one pass: class goodness by projection or by groups of channels."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.goodness import group_goodness
from localprop.functional.precision import at_least_single, full_precision
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class ProjectedGoodness(Objective):
    """Train a block by a projection of its activities on the classes.

    G = flatten(h) M^T; L = CE(G, y).

    Args:
        spec: The block.

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: Z D parameters a block for D activities, which is much for large maps.

    Note: The paper describes the projection for flat activities; maps are flattened, neither pooled nor averaged.

    References: Gong et al., "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural Network Training
        Harnessing Local Errors", 2025, arXiv:2501.09238.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.projection = nn.Linear(math.prod(spec.shape), spec.num_classes, bias=False)

    def logits(self, h: Tensor) -> Tensor:
        """Return the goodness of every class, shape (N, Z)."""
        features = at_least_single(h.flatten(1))
        with full_precision(h):
            logits: Tensor = self.projection(features)
            return logits

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        logits = self.logits(h)
        return LocalLoss(F.cross_entropy(logits, batch.target), logits)


class ChannelCompetition(Objective):
    """Train a block by the competition of Z groups of its channels.

    G_z = mean of h^2 over the channels of group z and all positions; L = CE(G, y).

    Args:
        spec: The block.

    Shape: h (N, C, H, W), (N, K, C) or (N, H); a flat output is split into Z pieces.

    Cost: no parameters.

    Raises:
        ValueError: The block has fewer channels than there are classes.

    Note: The paper's networks have a multiple of Z channels. With other numbers neighbouring classes share a channel.

    References: Papachristodoulou et al., "Convolutional Channel-Wise Competitive Learning for the Forward-Forward
        Algorithm", AAAI 2024, arXiv:2312.12668.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        width = spec.shape[spec.channel_axis]
        if width < spec.num_classes:
            raise ValueError(
                f"cwcomp: needs a channel for each of the {spec.num_classes} classes, block {spec.name!r} has {width}; "
                "use a wider network"
            )

    def logits(self, h: Tensor) -> Tensor:
        """Return the goodness of every class, shape (N, Z)."""
        return group_goodness(h, self.spec.num_classes, 1 if self.spec.channel_axis == 0 else -1)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        logits = self.logits(h)
        return LocalLoss(F.cross_entropy(logits, batch.target), logits)
