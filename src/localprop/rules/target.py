"""Target propagation: every block is pulled to a target that learned feedback carries down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.distance import squared_error
from localprop.functional.precision import at_least_single, full_precision
from localprop.functional.target import difference_target, jacobian_loss, logit_gradient, target_loss
from localprop.network import LocalNetwork, still_statistics
from localprop.rules.base import groups_from_the_last, unique
from localprop.rules.chained import Chained
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, BlockStep, Key

FeedbackLoss = Literal["reconstruction", "jacobian"]
Top = Literal["logits", "hidden"]


class TargetPropagation(Chained):
    """Train feedback networks to undo the blocks, then every block by the distance to its target.

    The top target is t_T = h_T - eta dL/dh_T, with the gradient of each sample's own loss, so that eta does not depend
    on the batch size. T is the last block, or the last hidden one, whose gradient comes through the last block.
    Feedback g_l carries the target of a source block s down to h_l, l < T: t_l = g_l(t_s), or with the difference
    correction t_l = h_l + g_l(t_s) - g_l(h_s). The source is the next block, or with direct feedback block T. Hidden
    block l minimises (1/2N) sum_n ||h_{l,n} - sg[t_{l,n}]||^2, the last one its cross-entropy.

    With e, d ~ N(0, sigma^2), f the blocks l + 1 .. s, and averages over the batch, feedback g_l minimises its
    "reconstruction" loss ||g_l(f(h_l + e)) - (h_l + e)||^2, or the "jacobian" loss (`jacobian_loss`). No feedback loss
    trains a block, and no block's loss trains feedback.

    Order: all blocks run once without a graph; for each block below T, (l, "feedback") is updated `iterations` times;
    targets go down with the new feedback, and (l, "block") is yielded from the last block to the first.

    Args:
        net: The network.
        specs: Its blocks.
        feedback: g_l of every block below T.
        difference: Whether targets are corrected by the difference.
        direct: Whether the source is always block T.
        top: Where T is: the "logits" of the last block, or the last "hidden" block.
        nudging: eta > 0.
        noise: sigma > 0.
        iterations: Updates of each feedback network in a batch, at least 1.
        feedback_loss: What feedback learns from.
        feedback_lr: Learning rate of feedback as a multiple of that of the blocks, > 0.

    Cost: all blocks' outputs, and the graph of one block or one feedback network. A block runs 2 + `iterations` times;
        with direct feedback `iterations` more for every further block before it. Runs after the first leave running
        statistics alone and draw the same dropout masks.

    Raises:
        ValueError: A setting out of its range.

    Note: The last block minimises its cross-entropy, whose gradient is that of (1/2N) ||h_L - t_L||^2 divided by eta.

    References: Lee et al., "Difference Target Propagation", 2015, arXiv:1412.7525. Meulemans et al., "A Theoretical
        Framework for Target Propagation", NeurIPS 2020, arXiv:2006.14331. Ernoult et al., "Towards Scaling Difference
        Target Propagation by Learning Backprop Targets", ICML 2022, arXiv:2201.13415.
    """

    accumulates = False

    def __init__(
        self,
        net: LocalNetwork,
        specs: Sequence[BlockSpec],
        feedback: Sequence[nn.Module],
        *,
        difference: bool,
        direct: bool,
        top: Top,
        nudging: float,
        noise: float,
        iterations: int,
        feedback_loss: FeedbackLoss,
        feedback_lr: float,
    ) -> None:
        super().__init__(net, specs)
        self.top = top_block(len(net), top)
        if len(feedback) != self.top:
            raise ValueError(f"feedback: need one for every block below the top ({self.top}), got {len(feedback)}")
        for name, value in {"nudging": nudging, "noise": noise, "feedback_lr": feedback_lr}.items():
            check_positive(name, value)
        if iterations < 1:
            raise ValueError(f"iterations: feedback needs at least 1 update a batch, got {iterations}")
        if feedback_loss not in ("reconstruction", "jacobian"):
            raise ValueError(f"feedback_loss: must be 'reconstruction' or 'jacobian', got {feedback_loss!r}")
        self.feedback = nn.ModuleList(feedback)
        self.difference = difference
        self.direct = direct
        self.nudging = nudging
        self.noise = noise
        self.iterations = iterations
        self.feedback_loss = feedback_loss
        self.feedback_lr = feedback_lr

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return the groups of feedback networks, then those of blocks from the last to the first."""
        feedback: dict[Key, list[nn.Parameter]] = {
            (index, "feedback"): unique(list(module.parameters())) for index, module in enumerate(self.feedback)
        }
        return {**feedback, **groups_from_the_last(self.net)}

    def lr_factor(self, key: Key) -> float:
        """Return the factor of feedback networks' learning rate; 1 for blocks."""
        return self.feedback_lr if key[1] == "feedback" else 1.0

    def _train(self, x: Tensor, y: Tensor, scale: float) -> Iterator[BlockStep]:
        with torch.no_grad():
            outputs = [run.output for run in self.net.iter_blocks(x, context=self.context)]
        for index in range(len(self.feedback)):
            for iteration in range(self.iterations):
                loss = self._feedback_loss(index, outputs, iteration)
                torch.autograd.backward(loss, torch.full_like(loss, scale))
                yield BlockStep((index, "feedback"), loss.detach())
        targets: dict[int, Tensor] = {}
        gradient = logit_gradient(at_least_single(outputs[-1]), y)
        for index in reversed(range(len(self.net))):
            block, hidden = self.net.blocks[index], index < len(self.net) - 1
            if index <= self.top:
                targets[index] = self._target(index, outputs, targets, gradient)
            trained = unique(list(block.parameters()))
            with still_statistics(block):
                done = self._run(index, outputs[index - 1] if index else x, input_grad=index > self.top)
            h, block_input = at_least_single(done.h), done.input
            loss = target_loss(h, targets[index]) if hidden else F.cross_entropy(h, y)
            logits = None if hidden else h.detach()
            if inputs := [*trained, *([block_input] if index > self.top else [])]:
                torch.autograd.backward(loss, torch.full_like(loss, scale), inputs=inputs)
            if block_input.grad is not None:
                gradient = at_least_single(block_input.grad) * (len(x) / scale)
            del done, h, block_input  # the yield below must not keep the graph alive
            if trained:
                yield BlockStep((index, "block"), loss.detach(), logits, outputs[index])

    def _source(self, index: int) -> int:
        """Return the block whose target gives that of block `index`."""
        return self.top if self.direct else index + 1

    def _target(self, index: int, outputs: list[Tensor], targets: dict[int, Tensor], top_gradient: Tensor) -> Tensor:
        h = at_least_single(outputs[index])
        if index == self.top:
            return h - self.nudging * top_gradient
        source = self._source(index)
        with torch.no_grad():
            fed = self._feed(index, targets[source])
            return difference_target(h, fed, self._feed(index, outputs[source])) if self.difference else fed

    def _feedback_loss(self, index: int, outputs: list[Tensor], iteration: int) -> Tensor:
        h, source = at_least_single(outputs[index]), at_least_single(outputs[self._source(index)])
        with seeded(derive(self.seed, "noise", self._step, self._passes, index, iteration), h.device):
            noise, disturbance = self.noise * torch.randn_like(h), self.noise * torch.randn_like(source)
        noisy = h + noise
        with torch.no_grad(), still_statistics(self.net):
            blocks = range(index + 1, self._source(index) + 1)
            *_, last = self.net.iter_blocks(noisy, blocks=blocks, context=self.context)
        fed = self._feed(index, last.output)
        if self.feedback_loss == "reconstruction":
            return squared_error(fed, noisy)
        return jacobian_loss(fed, self._feed(index, source), self._feed(index, source + disturbance), noise)

    def _feed(self, index: int, h: Tensor) -> Tensor:
        """Run feedback in full precision: targets are small differences."""
        with full_precision(h):
            fed: Tensor = self.feedback[index](at_least_single(h))
            return fed


def top_block(num_blocks: int, top: Top) -> int:
    """Return the index of the block whose target is made from a gradient.

    Raises:
        ValueError: There is no such place.
    """
    if top not in ("logits", "hidden"):
        raise ValueError(f"top: must be 'logits' or 'hidden', got {top!r}")
    return num_blocks - 1 if top == "logits" else max(num_blocks - 2, 0)
