"""Greedy local learning with the last block's error mixed into every local one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from localprop.functional.targets import logit_gradient, mixed_loss
from localprop.network import LocalNetwork, still_statistics
from localprop.objectives.base import Objective
from localprop.rules.greedy import Greedy
from localprop.types import BlockStep, LocalLoss


class GreedyMixed(Greedy):
    """Train hidden blocks by a mixture of their own error and that of the network, both at their logits.

    With g = dL_L/dz_L, the gradient of the network's loss by its own logits:
        dL/dz_l = (1 - w) dL_l/dz_l + w g, which the loss (1 - w) L_l + w sum_n <sg[g_n], z_{l,n}> has.

    A first pass without a graph finds g; then the blocks stream as in `Greedy`. Dropout masks are the same in both
    passes, and the first moves no running statistics, so that g is of the very outputs that the second pass makes.

    Args:
        net: The network.
        objectives: One a block, each with logits of the classes; the last one scores the network's logits.
        last_weight: w, 0 .. 1.

    Cost: one more forward pass, so that a single block's graph is alive at a time. With hooks instead of the loss the
        last block must go first, which keeps the graphs of all blocks.

    Raises:
        ValueError: The weight is out of its range.

    References: Code of a thesis on local learning, github.com/AlonNT/Thesis.
    """

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective], *, last_weight: float = 0.5) -> None:
        super().__init__(net, objectives)
        if not 0 <= last_weight <= 1:
            raise ValueError(f"last_weight: must lie in 0 .. 1, got {last_weight}")
        self.last_weight = last_weight

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for: the last block's error is needed.
        """
        self.refuse_stretch(blocks, "the last block's error goes to every block", "choose dgl instead")
        groups = self.parameter_groups()
        blocks = self._start(x, y, blocks)
        gradient = self._last_gradient(x, y)

        def loss_of(block: int, local: LocalLoss) -> Tensor:
            if block == len(self.net) - 1:
                return local.loss
            assert local.logits is not None
            return mixed_loss(local.loss, local.logits, gradient, self.last_weight)

        yield from self._stream(x, y, blocks, scale, trained=groups, groups=groups, loss_of=loss_of)

    def _last_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            for block_pass in self.net.iter_blocks(x, context=self._preview):
                last = block_pass
            logits = self._objective(last.block).logits(last.h)
        assert logits is not None
        return logit_gradient(logits, y)

    @contextlib.contextmanager
    def _preview(self, block: int) -> Iterator[None]:
        with self.context(block), still_statistics(self.net.blocks[block]):
            yield
