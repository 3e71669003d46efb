"""Synthetic gradients: every block is updated at once, by a prediction of the gradient that would come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.distance import squared_error
from localprop.functional.precision import at_least_single
from localprop.network import LocalNetwork
from localprop.rules.base import block_groups, has_batch_norm, unique
from localprop.rules.chained import Chained
from localprop.types import BlockSpec, BlockStep, Key


class SyntheticGradients(Chained):
    """Train hidden blocks by predicted gradients, and the predictors by the gradients of the blocks after them.

    With h_l = f_l(sg[h_{l-1}]) and s_l = M_l(sg[h_l] [, y]), hidden block l gets grad_theta <h_l, sg[s_l]> / N, the
    last one the gradient of the cross-entropy. The backward pass of block l + 1 ends at its input; N times what arrives
    there, g_l, is the target: L_{M_l} = (1/N) sum_n ||M_l(sg[h_l])_n - sg[g_l]_n||^2.

    Fully unlocked, block l > 0 runs on a prediction of its input, sg[P_l(x)], which learns from the output of the block
    before it, L_{P_l} = (1/N) sum_n ||P_l(x)_n - sg[h_{l-1}]_n||^2; the network answers without predictions.

    Groups: (l, "block"), (l, "synthesiser") after block l + 1, and unlocked (l, "input") after block l.

    Args:
        net: The network.
        specs: Its blocks.
        synthesisers: M_l of every hidden block: (h_l, y) -> the shape of h_l.
        inputs: P_l of every block but the first: x -> the shape of h_{l-1}; empty: blocks run on their true input.
        hidden_lr: Learning rate of hidden blocks as a multiple of that of the last block and the predictors, > 0.

    Cost: memory of one block's graph, or of one predictor's, whichever is larger. M_l (and P_l) runs twice: once
        without a graph to be used, and once with one to be trained, when its target is known.

    Raises:
        ValueError: The numbers of predictors do not fit, or the rate is not positive.

    Note: Published code predicts the gradient of the mean loss, which shrinks with the batch; M_l predicts each
        sample's own, N times as large, and its squared error sums over units.

    References: Jaderberg et al., "Decoupled Neural Interfaces using Synthetic Gradients", ICML 2017, arXiv:1608.05343.
    """

    def __init__(
        self,
        net: LocalNetwork,
        specs: Sequence[BlockSpec],
        synthesisers: Sequence[nn.Module],
        inputs: Sequence[nn.Module] = (),
        *,
        hidden_lr: float = 1.0,
    ) -> None:
        super().__init__(net, specs)
        if len(synthesisers) != len(net) - 1 or len(inputs) not in (0, len(net) - 1):
            raise ValueError(
                f"synthesisers and inputs: need {len(net) - 1} of the first, and as many or none of the second, got "
                f"{len(synthesisers)} and {len(inputs)}"
            )
        check_positive("hidden_lr", hidden_lr)
        self.hidden_lr = hidden_lr
        self.synthesisers = nn.ModuleDict({str(index): module for index, module in enumerate(synthesisers)})
        self.inputs = nn.ModuleDict({str(index + 1): module for index, module in enumerate(inputs)})
        self._has_batch_norm = has_batch_norm(self)

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return the groups of blocks and predictors, in the order in which they become final."""
        blocks = block_groups(self.net)
        groups: dict[Key, list[nn.Parameter]] = {}
        for index in range(len(self.net)):
            if (index, "block") in blocks:
                groups[index, "block"] = blocks[index, "block"]
            if index:
                groups[index - 1, "synthesiser"] = unique(list(self.synthesisers[str(index - 1)].parameters()))
            if index and self.inputs:
                groups[index, "input"] = unique(list(self.inputs[str(index)].parameters()))
        return groups

    def lr_factor(self, key: Key) -> float:
        """Return the factor of hidden blocks' learning rate; 1 for the last block and the predictors."""
        return 1.0 if key[1] != "block" or key[0] == len(self.net) - 1 else self.hidden_lr

    def _train(self, x: Tensor, y: Tensor, scale: float) -> Iterator[BlockStep]:
        sent = x  # the output of the block before
        for index, block in enumerate(self.net.blocks):
            got = self._predicted_input(index, x) if index and self.inputs else sent
            _, block_input, h, output = self._run(index, got, input_grad=index > 0)
            loss, logits = None, None
            if index < len(self.net) - 1:
                root, gradient = h, self._synthetic_gradient(index, output, y) * (scale / len(x))
            else:
                logits = at_least_single(h)
                root = loss = F.cross_entropy(logits, y)
                gradient = torch.full_like(loss, scale)
                loss, logits = loss.detach(), logits.detach()
            trained = unique(list(block.parameters()))
            # Only these collect a gradient: none is computed for the images.
            if inputs := [*trained, *([block_input] if index else [])]:
                torch.autograd.backward(root, gradient, inputs=inputs)
            del root, gradient, h  # the yield below must not keep the graph alive
            if trained:
                yield BlockStep((index, "block"), loss, logits, output)
            if index:
                assert block_input.grad is not None
                target = at_least_single(block_input.grad) * (len(x) / scale)
                synthesiser = self.synthesisers[str(index - 1)]
                yield self._learn((index - 1, "synthesiser"), synthesiser, (sent, y), target, scale)
            if index and self.inputs:
                yield self._learn((index, "input"), self.inputs[str(index)], (x,), sent, scale)
            sent = output

    def _synthetic_gradient(self, index: int, h: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), self.context(index, "synthesiser"):
            gradient: Tensor = self.synthesisers[str(index)](h, y)
        return gradient.to(h.dtype)

    def _predicted_input(self, index: int, x: Tensor) -> Tensor:
        with torch.no_grad(), self.context(index, "input"):
            predicted: Tensor = self.inputs[str(index)](x)
        return predicted

    def _learn(
        self, key: tuple[int, str], predictor: nn.Module, arguments: tuple[Tensor, ...], target: Tensor, scale: float
    ) -> BlockStep:
        with self.context(*key):
            predicted = predictor(*arguments)
        loss = squared_error(predicted, target)
        torch.autograd.backward(loss, torch.full_like(loss, scale))
        return BlockStep(key, loss.detach())
