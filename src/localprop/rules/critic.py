"""Local critics: every block minimises a loss that learns to be that of the next exit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.critic import loss_gap
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, LinearPrediction
from localprop.objectives.base import Objective
from localprop.rules.base import block_groups, unique
from localprop.rules.chained import Chained
from localprop.types import BlockStep, Key


class LocalCritic(Chained):
    """Train a block by the loss of its critic, and the critic by the gap to the loss of the next exit.

    With L_l = CE(c_l(h_l), y), a sample's own, and L_L that of the network: f_l minimises (1/N) sum_n L_{l,n}; the
    critic minimises (1/N) sum_n |L_{l,n} - sg[L_{l+1,n}]|. Neither trains the other, and no gradient crosses blocks.

    Groups: (l, "block"), and (l, "critic") after block l + 1, which sends N losses back.

    Args:
        net: The network.
        critics: One a hidden block: its logits are that block's exit.
        last: Makes the logits of the last block.

    Cost: memory of one block's graph with its critic. A critic runs twice: once for its block, and once to be trained,
        when the next block's losses are known.

    Note: In the published code weight decay reaches a hidden block multiplied by the sum of dL_l / dh_l; here it
        belongs to the optimiser.

    References: Lee et al., "Local Critic Training for Model-Parallel Learning of Deep Neural Networks", 2018,
        arXiv:1805.01128.
    """

    def __init__(self, net: LocalNetwork, critics: Sequence[LinearPrediction], last: CrossEntropy) -> None:
        objectives = [*critics, last]
        super().__init__(net, [objective.spec for objective in objectives])
        self.objectives = nn.ModuleList(objectives)

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return the groups of blocks and critics, in the order in which they become final."""
        blocks = block_groups(self.net)
        groups: dict[Key, list[nn.Parameter]] = {}
        for index in range(len(self.net)):
            if (index, "block") in blocks:
                groups[index, "block"] = blocks[index, "block"]
            if index:
                groups[index - 1, "critic"] = self._exit(index - 1).updated_parameters()
        return groups

    def _train(self, x: Tensor, y: Tensor, scale: float) -> Iterator[BlockStep]:
        for index, block in enumerate(self.net.blocks):
            _, block_input, h, output = self._run(index, x)
            logits = self._logits(index, h)
            loss = F.cross_entropy(logits, y)
            if trained := unique(list(block.parameters())):
                torch.autograd.backward(loss, torch.full_like(loss, scale), inputs=trained)
            loss, logits = loss.detach(), logits.detach()
            del h  # the yield below must not keep the graph alive
            if trained:
                yield BlockStep((index, "block"), loss, logits, output)
            if index:
                own = F.cross_entropy(self._logits(index - 1, block_input), y, reduction="none")
                gap = loss_gap(own, F.cross_entropy(logits, y, reduction="none"))
                del own
                torch.autograd.backward(gap, torch.full_like(gap, scale))
                yield BlockStep((index - 1, "critic"), gap.detach())
            x = output

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return the logits of every block: the critics' and the network's; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            passes = self.net.iter_blocks(x, context=self.context)
            return [self._logits(index, output) for index, _, _, output in passes]

    def run_block(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one block; see `Rule.run_block`."""
        if block == 0:
            self.check_input(x)
        with torch.no_grad():
            output = self._run(block, x).output
        return output, output

    def exit_logits(self, block: int, h: Tensor) -> Tensor:
        """Return the logits of the block's critic, or of the network; see `Rule.exit_logits`."""
        with torch.no_grad():
            return self._logits(block, h)

    def _logits(self, index: int, h: Tensor) -> Tensor:
        with self.context(index, "critic"):
            logits = self._exit(index).logits(h)
        assert logits is not None
        return logits

    def _exit(self, index: int) -> Objective:
        objective = self.objectives[index]
        assert isinstance(objective, Objective)
        return objective
