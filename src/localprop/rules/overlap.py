"""Local learning in windows of several blocks, which may overlap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localprop.network import LocalNetwork, still_statistics
from localprop.objectives.base import Objective
from localprop.rules.base import Rule, unique
from localprop.types import BlockSpec, BlockStep, Key, LocalBatch, LocalLoss


@dataclass(frozen=True)
class Window:
    """A stretch of blocks that one objective trains.

    Attributes:
        blocks: The blocks; gradients reach all of them.
        objective: Scores the output of the last of them.
        weight: Factor of the objective's loss.
    """

    blocks: range
    objective: Objective
    weight: float = 1.0


class Overlap(Rule):
    """Train windows of blocks, one after another; a block in several windows adds up their gradients.

    For a window of blocks i .. j with objective L and weight w: theta_i .. theta_j get
    w grad L(f_j(.. f_i(sg[h_{i-1}]))). Only one window's graph is alive at a time.

    What two windows share is run in both, by the same weights and with the same dropout masks, hence to the same bits;
    running statistics move in its first run alone. A group is yielded when the last window with its block is done, with
    the loss and the logits of the last window that ends at its block; if there is none, with the loss of the first one
    that holds it.

    Args:
        net: The network.
        specs: Its blocks.
        windows: By their last block, in ascending order; the last one ends with the network.

    Raises:
        ValueError: The windows leave a block out, or are not in order.

    References: Xiong, Ren and Urtasun, "LoCo: Local Contrastive Representation Learning", NeurIPS 2020; Laskin et al.,
        "Parallel Training of Deep Networks with Local Updates", 2020, arXiv:2012.03837.
    """

    def __init__(self, net: LocalNetwork, specs: Sequence[BlockSpec], windows: Sequence[Window]) -> None:
        super().__init__(net, specs)
        reached = 0
        for window in windows:
            if not window.blocks or window.blocks.start > reached or window.blocks.stop < reached:
                raise ValueError(f"windows: {window.blocks} does not follow on blocks 0 .. {reached - 1}")
            reached = window.blocks.stop
        if reached != len(net):
            raise ValueError(f"windows: they end after {reached} blocks, the network has {len(net)}")
        self.windows = tuple(windows)
        self.objectives = nn.ModuleList(window.objective for window in windows)

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block: its parameters, and those of the objectives that score its output."""
        groups: dict[Key, list[nn.Parameter]] = {}
        for index, block in enumerate(self.net.blocks):
            scoring = [window.objective for window in self.windows if window.blocks[-1] == index]
            own = [parameter for objective in scoring for parameter in objective.updated_parameters()]
            if parameters := unique([*block.parameters(), *own]):
                groups[index, "block"] = parameters
        return groups

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for: windows would reach out of it.
        """
        self.refuse_stretch(blocks, "windows overlap, so only the whole network can be trained", "use all blocks")
        self.check_batch(x, y, range(len(self.net)))
        groups = self.parameter_groups()
        self._passes += 1
        inputs = {0: x.detach()}  # of the blocks that windows still to come may begin with
        answers: dict[int, BlockStep] = {}
        done = 0
        with self.cleared_if_abandoned():
            for number, window in enumerate(self.windows):
                local = self._score(number, window, inputs, y)
                loss, logits, logs = local.loss, local.logits, local.logs
                del local
                factor = window.weight * scale
                if loss.requires_grad:  # not so if every block of the window is frozen
                    torch.autograd.backward(loss if factor == 1.0 else loss * factor)
                loss = loss.detach()
                prediction = None if logits is None else logits.detach()
                for index in window.blocks:
                    if index == window.blocks[-1]:
                        answers[index] = BlockStep((index, "block"), loss, prediction, inputs[index + 1], logs)
                    elif index not in answers:
                        answers[index] = BlockStep((index, "block"), loss, None, inputs[index + 1])
                del logits
                final = min((later.blocks.start for later in self.windows[number + 1 :]), default=len(self.net))
                for index in range(done, final):
                    del inputs[index]
                    if (index, "block") in groups:
                        yield answers.pop(index)
                done = final

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return the logits of every block that ends a window, by its last one; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            passes = self.net.iter_blocks(x, context=self.context)
            return [self.exit_logits(index, h) for index, _, h, _ in passes]

    def run_block(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one block; see `Rule.run_block`."""
        if block == 0:
            self.check_input(x)
        with torch.no_grad():
            (done,) = self.net.iter_blocks(x, blocks=range(block, block + 1), context=self.context)
        return done.h, done.output

    def exit_logits(self, block: int, h: Tensor) -> Tensor | None:
        """Return the logits of the block's last window; see `Rule.exit_logits`."""
        ending = [number for number, window in enumerate(self.windows) if window.blocks[-1] == block]
        if not ending:
            return None
        with torch.no_grad(), self.context(block, f"objective {ending[-1]}"):
            return self.windows[ending[-1]].objective.logits(h)

    def _score(self, number: int, window: Window, inputs: dict[int, Tensor], y: Tensor) -> LocalLoss:
        """Run a window, keep the outputs of blocks that ran for the first time, and return its objective's answer."""

        @contextlib.contextmanager
        def context(index: int) -> Iterator[None]:
            again = still_statistics(self.net.blocks[index]) if index + 1 in inputs else contextlib.nullcontext()
            with self.context(index), again:
                yield

        block_input = inputs[window.blocks.start]
        outputs = self.net.run_window(block_input, window.blocks, context=context)
        for index, h in zip(window.blocks, outputs, strict=True):
            inputs.setdefault(index + 1, h.detach())
        with self.context(window.blocks[-1], f"objective {number}"):
            return window.objective(outputs[-1], LocalBatch(y, block_input))
