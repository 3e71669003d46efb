"""A method that uses all that phases can do, for tests: `tests.phased:METHOD`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from localprop.methods import Method
from localprop.methods.common import Specs
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, LinearPrediction
from localprop.rules import Greedy
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, Phase

Pairs = Iterable[tuple[Tensor, Tensor]]


class Phased(Greedy):
    """Train the first block, scale it in closed form, then train the others on its features.

    `prepare` adds the means of the phase's inputs, and noise, to a buffer; `finish` moves the last block by them.
    """

    moments: Tensor

    def __init__(self, net: LocalNetwork, objectives: list) -> None:
        super().__init__(net, objectives)
        self.register_buffer("moments", torch.zeros(4))
        self.calls: list[tuple[str, str]] = []

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("first", range(0, 1), 0.25),
            Phase("closed form", range(0, 1), 0.0),
            Phase("rest", range(1, len(self.net)), 0.75, "features"),
        )

    def prepare(self, phase: Phase, batches: Pairs) -> None:
        self.calls.append(("prepare", phase.name))
        assert not self.training
        assert not torch.is_grad_enabled()
        means = [x.mean() for x, _ in batches]
        with seeded(derive(self.seed, "prepare", phase.name), self.moments.device):
            self.moments.add_(torch.stack(means).mean() + torch.randn(4, device=self.moments.device))

    def finish(self, phase: Phase, batches: Pairs) -> None:
        self.calls.append(("finish", phase.name))
        labels = torch.cat([y for _, y in batches])
        for parameter in self.net.blocks[-1].parameters():
            parameter.add_(0.01 * self.moments.mean() * labels.float().mean())


def phased(net: LocalNetwork, specs: Specs) -> Phased:
    hidden: list[BlockSpec] = list(specs[:-1])
    return Phased(net, [*(LinearPrediction(spec) for spec in hidden), CrossEntropy(specs[-1])])


METHOD = Method("phased", "A test of phases", "tests", 2024, "", phased, "none")
