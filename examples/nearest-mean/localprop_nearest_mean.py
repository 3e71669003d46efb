"""Train every block by the distances of its averaged features to the running means of the classes.

A method in one file: an objective, a builder whose keyword-only parameters are the settings, and a row of the
catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop import BlockSpec, LocalBatch, LocalLoss, LocalNetwork, Method, Objective
from localprop.objectives import CrossEntropy
from localprop.rules import Greedy


class NearestMean(Objective):
    """Pull each sample's features to the mean of its class, and away from the others.

    With averaged features hbar and m_z the running mean of class z, a constant to the gradient:
        logit_z = -||hbar - m_z||^2 / (tau C);   L = cross-entropy of these;
        m_z <- momentum m_z + (1 - momentum) mean_{y = z} hbar.

    Args:
        spec: The block.
        temperature: tau > 0.
        momentum: Share of the old mean that is kept at each batch, in [0, 1).

    Cost: no trained parameters; Z C numbers of state.
    """

    means: Tensor

    def __init__(self, spec: BlockSpec, *, temperature: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__(spec)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: must be positive and finite, got {temperature}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: must lie in [0, 1), got {momentum}")
        self.temperature, self.momentum = temperature, momentum
        # A buffer, so that it is saved, resumed and moved with the rest. Small differences break the symmetry.
        self.register_buffer("means", 0.1 * torch.randn(spec.num_classes, spec.channels))

    def logits(self, h: Tensor) -> Tensor:
        features = self.averaged_features(h)
        with torch.autocast(h.device.type, enabled=False):
            squares = (features[:, None] - self.means).square().mean(2)
            return -squares / self.temperature

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        logits = self.logits(h)
        if self.training:
            self._move(self.averaged_features(h.detach()), batch.target)
        return LocalLoss(F.cross_entropy(logits, batch.target), logits)

    @torch.no_grad()
    def _move(self, features: Tensor, target: Tensor) -> None:
        members = F.one_hot(target, len(self.means)).to(features.dtype)
        count = members.sum(0)[:, None]
        averages = members.T @ features / count.clamp(min=1)
        moved = self.momentum * self.means + (1 - self.momentum) * averages
        self.means.copy_(torch.where(count > 0, moved, self.means))  # a class that is not in the batch stays


def nearest_mean(
    net: LocalNetwork, specs: Sequence[BlockSpec], *, temperature: float = 0.1, momentum: float = 0.9
) -> Greedy:
    """Train hidden blocks by their distances to class means, and the last block by cross-entropy.

    Args:
        net: The network.
        specs: Its blocks.
        temperature: Positive divisor of the squared distances.
        momentum: Share of the old mean that is kept at each batch.
    """
    hidden = [NearestMean(spec, temperature=temperature, momentum=momentum) for spec in specs[:-1]]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


METHOD = Method(
    name="nearest-mean",
    title="Distances to running class means",
    family="prototypes",
    year=2026,
    citation="@misc{nearestmean, title = {Distances to running class means}, year = {2026}}",
    builder=nearest_mean,
    auxiliary_parameters="none",
)
