"""End-to-end backpropagation: the baseline, in the same code path as every other rule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.precision import at_least_single
from localprop.rules.base import Rule, unique
from localprop.types import BlockStep, Key

NETWORK: Key = (None, "network")


class Backprop(Rule):
    """Train the whole network by the gradient of the cross-entropy of its logits.

    One graph through all blocks, one parameter group (None, "network"). Hidden blocks make no predictions.
    """

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group: all parameters of the network."""
        return {NETWORK: unique(list(self.net.parameters()))}

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (None, "network") once; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for: backprop needs them all.
        """
        self.check_whole(x, y, blocks)
        self._passes += 1
        with self.cleared_if_abandoned():
            logits = self._forward(x)
            loss = F.cross_entropy(logits, y)
            torch.autograd.backward(loss if scale == 1.0 else loss * scale)
            loss, logits = loss.detach(), logits.detach()
            yield BlockStep(NETWORK, loss, logits, logits)

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return None for every hidden block, and the network's logits; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            return [None] * (len(self.net) - 1) + [self._forward(x)]

    def check_whole(self, x: Tensor, y: Tensor, blocks: range | None) -> None:
        """Refuse a batch that does not fit, or a stretch of blocks: a global error needs the whole network."""
        self.refuse_stretch(blocks, f"{type(self).__name__} trains the network as a whole", "choose a local method")
        self.check_batch(x, y, range(len(self.net)))

    def _forward(self, x: Tensor) -> Tensor:
        return at_least_single(self.net.run_layers(x, self.context))
