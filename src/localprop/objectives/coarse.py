"""Easier targets in early blocks: groups of classes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from localprop.functional.targets import class_groups
from localprop.objectives.auxiliary import AuxiliaryNetwork
from localprop.objectives.base import Objective
from localprop.objectives.probe import Probe
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class CoarsePrediction(Objective):
    """Train a block to tell groups of classes apart; a probe that does not train it predicts the classes.

    L = CE(W a(h) + b, g(y)) + CE(V flatten(pool(sg[h])) + c, y), with g(y) = floor(y G / Z).

    Args:
        spec: The block.
        features: a, from the block's output to features, shape (N, P).
        num_groups: G, 1 .. Z.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: the parameters of a, G (P + 1), and those of the `Probe`.
    """

    def __init__(self, spec: BlockSpec, features: nn.Module, *, num_groups: int) -> None:
        super().__init__(spec)
        self.num_groups = num_groups
        self.groups = AuxiliaryNetwork(spec, features, num_targets=num_groups)
        self.probe = Probe(spec)

    def logits(self, h: Tensor) -> Tensor:
        """Return the probe's logits of the classes, shape (N, Z)."""
        return self.probe.logits(h)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`; logs the loss that trains the block."""
        target = class_groups(batch.target, self.num_groups, self.spec.num_classes)
        coarse, fine = self.groups(h, replace(batch, target=target)), self.probe(h, batch)
        return LocalLoss(coarse.loss + fine.loss, fine.logits, {"groups_loss": coarse.loss.detach()})
