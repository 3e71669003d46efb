"""Training block after block: each to its end before the next begins."""

from __future__ import annotations

from localprop.rules.greedy import Greedy
from localprop.types import Phase


class Layerwise(Greedy):
    """Train one block after another by its own objective, on the features of the trained blocks before it.

    Phase l = 1 .. L: theta_l gets grad_{theta_l} L_l(f_l(sg[h_{l-1}]), y), with h_{l-1} in evaluation mode. Every block
    gets the same share of the run's steps, and a learning-rate schedule of its own.

    Cost: a step is one block's, and the forward pass of the blocks before it unless their features are kept.

    Note: `steps` without `blocks` trains all blocks at once, as `Greedy` does.

    References: Belilovsky et al., "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019, arXiv:1812.11446.
    """

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase a block."""
        num_blocks = len(self.net)
        return tuple(
            Phase(name, range(index, index + 1), 1 / num_blocks, "features")
            for index, name in enumerate(self.net.names)
        )
