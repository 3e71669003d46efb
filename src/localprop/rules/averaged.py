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
        return _with_shared_apart(super().parameter_groups())

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield block after block, then (None, "shared"); see `Rule.steps`."""
        blocks = self._start(x, y, blocks)
        trained = super().parameter_groups()
        groups = _with_shared_apart(trained)
        shared = groups.get(SHARED, [])
        counts = Counter(p for group in trained.values() for p in group)
        # Gradients of earlier batches (accumulation) wait here, so that the mean below is over this batch alone.
        before = {p: p.grad for p in shared}
        for p in shared:
            p.grad = None
        yield from self._stream(x, y, blocks, scale, trained=trained, groups=groups)
        for p in shared:
            if p.grad is not None:
                p.grad /= counts[p]
            earlier = before[p]
            if earlier is not None:
                p.grad = earlier if p.grad is None else p.grad + earlier
        if shared:
            yield BlockStep(SHARED)


def _with_shared_apart(trained: dict[Key, list[nn.Parameter]]) -> dict[Key, list[nn.Parameter]]:
    shared = shared_parameters(trained)
    own = {key: [p for p in parameters if p not in shared] for key, parameters in trained.items()}
    together = [p for p in dict.fromkeys(q for group in trained.values() for q in group) if p in shared]
    return {key: group for key, group in {**own, SHARED: together}.items() if group}
