"""Greedy local learning with shared parameters that are updated once a batch, by the mean over blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn

from localprop.rules.greedy import Greedy, shared_parameters
from localprop.types import BlockStep, Key

SHARED: Key = (None, "shared")


class GreedyAveraged(Greedy):
    """Train blocks as `Greedy` does, but shared parameters by the mean of the blocks' gradients, once a batch.

    grad T = (1/B) sum_l grad_T L_l over the B blocks that train T, all at the same T, as when blocks run in parallel.

    Note: The authors of DCL warn that this form is less stable than the update layer by layer.
    """

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block without the shared parameters, then the group (None, "shared")."""
        groups = super().parameter_groups()
        shared = shared_parameters(groups)
        own = {key: [p for p in parameters if p not in shared] for key, parameters in groups.items()}
        together = [p for p in dict.fromkeys(q for group in groups.values() for q in group) if p in shared]
        return {key: group for key, group in {**own, SHARED: together}.items() if group}

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield block after block, then (None, "shared"); see `Rule.steps`."""
        blocks = range(len(self.net)) if blocks is None else blocks
        groups = super().parameter_groups()
        shared = shared_parameters(groups)
        counts = Counter(p for group in groups.values() for p in group)
        # Gradients of earlier batches (accumulation) wait here, so that the mean below is over this batch alone.
        before = {p: p.grad for p in shared}
        for p in shared:
            p.grad = None
        yield from super().steps(x, y, blocks=blocks, scale=scale)
        for p in shared:
            if p.grad is not None:
                p.grad /= counts[p]
            earlier = before[p]
            if earlier is not None:
                p.grad = earlier if p.grad is None else p.grad + earlier
        if shared:
            yield BlockStep(SHARED)
