"""Greedy local learning on a batch and its turned copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from localprop.functional.targets import rotated_image
from localprop.rules.greedy import Greedy
from localprop.seed import derive, seeded
from localprop.types import BlockStep


class GreedyRotated(Greedy):
    """Train blocks as `Greedy` does, on a batch of N images followed by their copies, each turned at random.

    Every image is turned once by r quarter turns, r drawn from 0 .. 3. Objectives get 2N samples, and as targets the
    N labels followed by the N turns. A stretch of blocks that does not begin with the first takes 2N inputs.

    Cost: blocks run on 2N samples.
    """

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`. Outputs are of 2N samples."""
        groups = self.parameter_groups()
        from_image = blocks is None or blocks.start == 0
        blocks = self._start(x if from_image else x[: len(x) // 2], y, blocks)
        with seeded(derive(self.seed, "rotation", self._step, self._passes), y.device):
            turns = torch.randint(4, y.shape, device=y.device)
        both = torch.cat([x, rotated_image(x, turns)]) if from_image else x
        yield from self._stream(both, torch.cat([y, turns]), blocks, scale, trained=groups, groups=groups)
