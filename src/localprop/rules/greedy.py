"""Greedy local learning: every block minimises its own objective on a detached input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from localprop.network import BlockPass, LocalNetwork
from localprop.objectives.base import Objective
from localprop.rules.base import Rule, unique
from localprop.types import BlockStep, Key, LocalBatch, LocalLoss


class Greedy(Rule):
    """Train each block by its own objective, streaming: forward, loss, backward, then the next block.

    For l = 1 .. L: h_l = f_l(sg[h_{l-1}]); theta_l gets grad_{theta_l} L_l(h_l, y). Only one block's graph is alive at
    a time. Activations sent on are those from before the block's update.

    A parameter that several objectives train, such as a shared dictionary, stands in the group of each of those
    blocks; stepping each group as it is yielded updates it layer by layer, and each optimiser keeps its own state for
    it. Its gradient must be None again before the next block runs.

    Args:
        net: The network.
        objectives: One a block; the last one scores the network's logits.

    Raises:
        ValueError: The number of objectives does not fit.
    """

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective]) -> None:
        super().__init__(net, [objective.spec for objective in objectives])
        self.objectives = nn.ModuleList(objectives)
        self._at_activation = {index for index, o in enumerate(objectives) if o.reads == "activation"}

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block: its parameters and those that its objective trains."""
        groups: dict[Key, list[nn.Parameter]] = {}
        for index, block in enumerate(self.net.blocks):
            if parameters := unique([*block.parameters(), *self._objective(index).updated_parameters()]):
                groups[index, "block"] = parameters
        return groups

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a shared parameter still holds an earlier block's gradient.
        """
        groups = self.parameter_groups()
        blocks = self._start(x, y, blocks)
        yield from self._stream(x, y, blocks, scale, trained=groups, groups=groups)

    def _start(self, x: Tensor, y: Tensor, blocks: range | None) -> range:
        """Check the batch, count the pass, and return the blocks that it trains."""
        blocks = range(len(self.net)) if blocks is None else blocks
        self.check_batch(x, y, blocks)
        self._passes += 1
        return blocks

    def _stream(
        self,
        x: Tensor,
        y: Tensor,
        blocks: range,
        scale: float,
        *,
        trained: dict[Key, list[nn.Parameter]],
        groups: dict[Key, list[nn.Parameter]],
        loss_of: Callable[[int, LocalLoss], Tensor] = lambda block, local: local.loss,
    ) -> Generator[BlockStep]:
        """Train the blocks that `trained` names, and yield those that have a group of their own in `groups`.

        Args:
            x: Inputs of the first of `blocks`.
            y: What the objectives get as target.
            blocks: Which blocks to run.
            scale: Factor of every gradient.
            trained: Groups whose blocks are trained.
            groups: Groups that are yielded.
            loss_of: What a block minimises, from its index and its objective's answer.
        """
        shared = shared_parameters(groups)
        image = self._image(x, blocks)
        with self.cleared_if_abandoned():
            for index, block_input, h, output in self._run(x, blocks):
                if (index, "block") not in trained:
                    continue
                for parameter in groups.get((index, "block"), ()):
                    if parameter in shared and parameter.grad is not None:
                        raise ValueError(
                            f"a parameter shared by several blocks still has a gradient before block {index}; step and "
                            "zero_grad(set_to_none=True) the yielded group's optimizer before asking for the next"
                        )
                with self.context(index, "objective"):
                    local = self._objective(index)(h, LocalBatch(y, block_input, image))
                    loss, logits, logs = loss_of(index, local), local.logits, local.logs
                del h, local  # the yield below must not keep the graph alive
                torch.autograd.backward(loss if scale == 1.0 else loss * scale)
                if (index, "block") in groups:
                    prediction = None if logits is None else logits.detach()
                    yield BlockStep((index, "block"), loss.detach(), prediction, output, logs)
                del loss, logits, output, block_input

    def check_target(self, y: Tensor, num_samples: int) -> None:
        """Refuse targets that the objectives do not take: classes, or real numbers where all of them take these."""
        num_outputs = self.specs[0].num_classes
        takes_numbers = all(self._objective(index).real_targets for index in range(len(self.net)))
        if not takes_numbers or not (y.is_floating_point() or y.dim() > 1 or num_outputs == 1):
            super().check_target(y, num_samples)
            return
        if not y.is_floating_point() or y.shape != (num_samples, num_outputs):
            classes = f", or int64 class indices of shape ({num_samples},)" if num_outputs > 1 else ""
            raise ValueError(
                f"y: need real-valued targets of shape ({num_samples}, {num_outputs}){classes}, got {y.dtype} of shape "
                f"{tuple(y.shape)}; use y.float(), and y[:, None] for a single target"
            )
        if y.is_cpu and not y.isfinite().all():
            raise ValueError("y: targets must be finite, got NaN or infinity; drop or fill in these samples")

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return the logits of every block that makes a prediction; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            return [self.exit_logits(index, h) for index, _, h, _ in self._run(x, range(len(self.net)))]

    def run_block(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one block; see `Rule.run_block`."""
        if block == 0:
            self.check_input(x)
        with torch.no_grad():
            (done,) = self._run(x, range(block, block + 1))
        return done.h, done.output

    def exit_logits(self, block: int, h: Tensor) -> Tensor | None:
        """Return the logits that the block's objective gives; see `Rule.exit_logits`."""
        with torch.no_grad(), self.context(block, "objective"):
            return self._objective(block).logits(h)

    def _image(self, x: Tensor, blocks: range) -> Tensor | None:
        needy = [index for index in blocks if self._objective(index).needs_image]
        if needy and blocks.start:
            raise ValueError(
                f"blocks: the objective of block {needy[0]} needs the images, which the input of block {blocks.start} "
                "is not; start at block 0"
            )
        return self.image(x.detach()) if needy else None

    def _run(self, x: Tensor, blocks: range) -> Iterator[BlockPass]:
        return self.net.iter_blocks(x, blocks=blocks, context=self.context, at_activation=self._at_activation)

    def _objective(self, index: int) -> Objective:
        objective = self.objectives[index]
        assert isinstance(objective, Objective)
        return objective


def shared_parameters(groups: dict[Key, list[nn.Parameter]]) -> set[nn.Parameter]:
    """Return the parameters that stand in more than one group."""
    counts = Counter(parameter for parameters in groups.values() for parameter in parameters)
    return {parameter for parameter, count in counts.items() if count > 1}
