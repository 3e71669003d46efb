"""Greedy local learning through averages of the next block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.objectives.copies import BlockPair
from localprop.rules.greedy import Greedy


class GreedyMomentum(Greedy):
    """Train blocks as `Greedy` does; in their auxiliary networks, averages of the next block follow it.

    At the start of every optimiser step: average_l <- m average_l + (1 - m) theta_{l+1}. The averages are part of
    the rule's state.

    Args:
        net: The network.
        objectives: One a block.
        pairs: By block, the copies of the block after it that its objective runs.
        momentum: m, 0 .. 1; at 1 the averages stand still.

    Raises:
        ValueError: The momentum is out of its range.

    References: Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024.
    """

    def __init__(
        self,
        net: LocalNetwork,
        objectives: Sequence[Objective],
        pairs: Mapping[int, BlockPair],
        *,
        momentum: float = 0.995,
    ) -> None:
        super().__init__(net, objectives)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: must lie in 0 .. 1, got {momentum}")
        self.pairs = dict(pairs)  # the objectives hold their parameters
        self.momentum = momentum

    def begin(self, step: int) -> None:
        """Start an optimiser step: let the averages follow the blocks as they are now."""
        super().begin(step)
        for index, pair in self.pairs.items():
            pair.follow(self.net.blocks[index + 1], self.momentum)
