"""What the rules share whose blocks learn apart, but from messages of other blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from localprop.functional.precision import at_least_single
from localprop.network import BlockPass
from localprop.rules.base import Rule
from localprop.types import BlockStep


class Chained(Rule):
    """Train all blocks in one pass of `_train`; the network answers with its last block, and hidden blocks with none.

    A block gets messages from blocks after it, so no stretch of blocks can be trained by itself.
    """

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield the groups in the order of `parameter_groups`; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for.
        """
        why = (
            f"{type(self).__name__} sends messages from later blocks to earlier ones and trains the network as a whole"
        )
        self.refuse_stretch(blocks, why, "choose a method without messages")
        self.check_batch(x, y, range(len(self.net)))
        self._passes += 1
        with self.cleared_if_abandoned():
            yield from self._train(x.detach(), y, scale)

    @abstractmethod
    def _train(self, x: Tensor, y: Tensor, scale: float) -> Iterator[BlockStep]:
        """Train on a batch that was checked."""

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return None for every hidden block, and the network's logits; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            for done in self.net.iter_blocks(x, context=self.context):
                logits = done.output
            return [None] * (len(self.net) - 1) + [at_least_single(logits)]

    def _run(self, index: int, x: Tensor, *, input_grad: bool = False) -> BlockPass:
        """Run one block on a detached input."""
        return next(
            self.net.iter_blocks(x, blocks=range(index, index + 1), input_grad=input_grad, context=self.context)
        )
