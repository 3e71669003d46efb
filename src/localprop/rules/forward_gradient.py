"""Forward gradients: the slope of a block's loss along a random direction, computed with the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.rules.greedy import Greedy
from localprop.seed import derive
from localprop.types import BlockStep, LocalBatch

make_dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual  # given types, which PyTorch leaves out
unpack_dual: Callable[[Tensor], forward_ad.UnpackedDualTensor] = forward_ad.unpack_dual
Perturbation = Literal["activities", "weights"]


class ForwardGradient(Greedy):
    """Train hidden blocks by an unbiased estimate of their local gradient, made of a slope and its direction.

    With L_n the cross-entropy of the logits of the block's classifier, and v of N(0, 1) entries:
        "weights":    grad theta = <grad_theta L, v> v, one slope for all parameters theta of the block;
        "activities": grad h_n = <grad_{h_n} L_n, v_n> v_n, one slope a sample, carried into theta by the block's
                      Jacobian.
    Slopes are Jacobian-vector products in forward mode. Classifiers, the last block among them, learn from their exact
    gradient.

    Args:
        net: The network.
        objectives: One a block, whose logits are trained by cross-entropy.
        perturb: What the random directions move.

    Raises:
        ValueError: A setting out of its range.

    Cost: one direction a parameter and no graph ("weights"), or one an activity and the block's graph ("activities").

    Note: The paper perturbs the activities of every layer and splits them into groups with losses of their own; here
        the output of a block is perturbed, and has one loss.

    References:
        Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587.
        Ren et al., "Scaling Forward Gradient With Local Losses", ICLR 2023, arXiv:2210.03310.
    """

    def __init__(
        self, net: LocalNetwork, objectives: Sequence[Objective], *, perturb: Perturbation = "activities"
    ) -> None:
        super().__init__(net, objectives)
        if perturb not in ("activities", "weights"):
            raise ValueError(f"perturb: must be 'activities' or 'weights', got {perturb!r}")
        self.perturb = perturb

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`."""
        blocks = range(len(self.net)) if blocks is None else blocks
        self.check_batch(x, y, blocks)
        self._passes += 1
        groups = self.parameter_groups()
        estimate = self._through_activities if self.perturb == "activities" else self._through_weights
        last = len(self.net) - 1
        h = x.detach()
        with self.cleared_if_abandoned():
            for index in blocks:
                if index == last:
                    yield from self._stream(h, y, range(last, last + 1), scale, trained=groups, groups=groups)
                    return
                block_input, h = h, estimate(index, h, y, scale)
                local = self._objective(index)(h, LocalBatch(y, block_input))
                loss, logits = local.loss, local.logits
                if loss.requires_grad:
                    torch.autograd.backward(loss if scale == 1.0 else loss * scale)
                del local
                if (index, "block") in groups:
                    assert logits is not None
                    yield BlockStep((index, "block"), loss.detach(), logits.detach(), h)

    def _through_activities(self, index: int, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """Add the estimate to the block's gradients, and return the block's output."""
        (passed,) = self._run(x, range(index, index + 1))
        direction = _direction(passed.output, self._generator(index))
        with torch.no_grad(), forward_ad.dual_level():
            logits = self._objective(index).logits(make_dual(passed.output, direction))
            assert logits is not None
            slopes = unpack_dual(F.cross_entropy(logits, y, reduction="none")).tangent
        if passed.h.requires_grad:
            assert slopes is not None
            slopes = (scale / len(y)) * slopes.view(-1, *[1] * (direction.dim() - 1))
            torch.autograd.backward(passed.h, (slopes * direction).to(direction.dtype))
        return passed.output

    def _through_weights(self, index: int, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """Add the estimate to the block's gradients, and return the block's output."""
        block = self.net.blocks[index]
        parameters = {name: p for name, p in block.named_parameters() if p.requires_grad}
        generator = self._generator(index)
        directions = {name: _direction(p, generator) for name, p in parameters.items()}
        with torch.no_grad(), forward_ad.dual_level():
            duals = {name: make_dual(p, directions[name]) for name, p in parameters.items()}
            with self.context(index):
                h = functional_call(block, duals, (x,))
            logits = self._objective(index).logits(h)
            assert logits is not None
            slope = unpack_dual(F.cross_entropy(logits, y)).tangent
            output: Tensor = unpack_dual(h).primal
        for name, parameter in parameters.items():
            assert slope is not None
            estimate = (scale * slope).to(parameter.dtype) * directions[name]
            parameter.grad = estimate if parameter.grad is None else parameter.grad + estimate
        return output

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, "direction", self._step, self._passes, index))


def _direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) entries in the shape, data type and layout of a tensor; on the host, whatever its device."""
    return torch.empty_like(like).copy_(torch.randn(like.shape, generator=generator), non_blocking=True)
