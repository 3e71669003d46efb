"""An auxiliary network of one to three layers on a block's output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.dictionary import information_bound
from localprop.functional.pooling import average_positions
from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class DeepPrediction(Objective):
    """Train a block by the cross-entropy of an auxiliary network of `depth` layers on its output.

    L = CE(W flatten(pool(a_{k-1}( .. a_1(h)))) + b, y), where pool averages a map to 2 x 2 and
    a_i(h) = relu(w_i * h + b_i) is a 3x3 convolution that keeps size and width.

    Args:
        spec: The block.
        depth: k, the layers of the network, 1 .. 3; at 1 it is linear.

    Shape: h (N, C, H, W); tokens (N, K, C) have linear layers in the place of convolutions and are averaged over all
    positions; so have flat outputs (N, H), which are not averaged.

    Cost: 4 Z C + Z parameters a block of maps, and (k - 1) (9 C^2 + C).

    Raises:
        ValueError: A depth out of its range.

    References: Belilovsky et al., "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019, arXiv:1812.11446.
    """

    def __init__(self, spec: BlockSpec, *, depth: int = 1) -> None:
        super().__init__(spec)
        if not 1 <= depth <= 3:
            raise ValueError(f"aux_depth: must be 1, 2 or 3, got {depth}")
        self.layers = nn.Sequential(*(module for _ in range(depth - 1) for module in (_layer(spec), nn.ReLU())))
        num_features = _pool(torch.zeros(1, *spec.shape)).shape[1]
        self.classifier = nn.Linear(num_features, spec.num_classes)

    def logits(self, h: Tensor) -> Tensor:
        """Return the network's logits, shape (N, Z)."""
        features = _pool(self.layers(h))
        with full_precision(h):
            logits: Tensor = self.classifier(features)
            return logits

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`."""
        logits = self.logits(h)
        loss = F.cross_entropy(logits, batch.target)
        return LocalLoss(loss, logits, {"bound_nats": information_bound(loss, self.spec.num_classes)})


def _layer(spec: BlockSpec) -> nn.Module:
    width = spec.shape[spec.channel_axis]
    return nn.Conv2d(width, width, 3, padding=1) if len(spec.shape) == 3 else nn.Linear(width, width)


def _pool(h: Tensor) -> Tensor:
    if h.dim() == 4:
        h = F.adaptive_avg_pool2d(h, (min(2, h.shape[2]), min(2, h.shape[3])))
    elif h.dim() == 3:
        h = average_positions(h, channel_axis=-1)
    return h.flatten(1).to(torch.promote_types(h.dtype, torch.float32))
