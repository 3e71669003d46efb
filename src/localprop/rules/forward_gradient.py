"""Forward gradients: the slope of a block's loss along a random direction, without a backward pass through the block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from localprop.network import LocalNetwork, still_statistics
from localprop.objectives.base import Objective
from localprop.rules.greedy import Greedy
from localprop.seed import derive
from localprop.types import BlockStep

Perturbation = Literal["activities", "weights"]


class ForwardGradient(Greedy):
    """Train each block by an unbiased estimate of its local gradient, from one pass in forward mode.

    With L the cross-entropy of the block's logits (its classifier's; of the last block, its own) and v of N(0, 1) entries:
        "weights":    g = <grad_theta L, v> v for all parameters theta of block and classifier together.
        "activities": for every module with parameters of its own, whose output is a, and every sample n:
                      g_a = <grad_a L_n, v_n> v_n, where the slope is along the directions of all of the block's modules
                      at once; its parameters get g_a times the module's own Jacobian.
    The slopes are Jacobian-vector products, computed along with the forward pass.

    Args:
        net: The network.
        objectives: One a block, whose logits are trained by cross-entropy.
        perturb: What the random directions move.

    Raises:
        ValueError: A setting out of its range, or parameters that "activities" cannot reach.

    Cost: no graph through a block. "weights" stores a direction a parameter; "activities" one an activity, and runs
        each module once more for the product with its Jacobian.

    Note: With "activities" samples are taken as independent: what one sample's activity does to the loss of another
        through the statistics of batch normalisation is left out.

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
        for name, block in zip(net.names, net.blocks, strict=True):
            for module in _owners(block) if perturb == "activities" else ():
                if any(True for _ in module.children()):
                    raise ValueError(
                        f"perturb: block {name!r} has a {type(module).__name__} with parameters beside its modules, which "
                        "'activities' cannot reach; use 'weights'"
                    )

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`."""
        blocks = range(len(self.net)) if blocks is None else blocks
        self.check_batch(x, y, blocks)
        self._passes += 1
        groups = self.parameter_groups()
        h = x.detach()
        try:
            for index in blocks:
                estimate = self._perturb_activities if self.perturb == "activities" else self._perturb_weights
                loss, logits, h = estimate(index, h, y, scale)
                if (index, "block") in groups:
                    yield BlockStep((index, "block"), loss, logits, h)
        except BaseException:
            self.clear_gradients()
            raise

    def _perturb_weights(self, index: int, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        scored = _Scored(self.net.blocks[index], self._objective(index))
        parameters = {name: p for name, p in scored.named_parameters() if p.requires_grad}
        generator = self._generator(index)
        directions = {name: _direction(p, generator) for name, p in parameters.items()}
        with torch.no_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(p, directions[name]) for name, p in parameters.items()}
            with self.context(index):
                h, logits = functional_call(scored, duals, (x,))
            loss, slope = forward_ad.unpack_dual(F.cross_entropy(logits, y))
            h, logits = forward_ad.unpack_dual(h).primal, forward_ad.unpack_dual(logits).primal
            for name, parameter in parameters.items():
                assert slope is not None
                _add_gradient(parameter, scale * slope * directions[name])
        return loss, logits, h

    def _perturb_activities(self, index: int, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        scored = _Scored(self.net.blocks[index], self._objective(index))
        generator = self._generator(index)
        perturbed: list[tuple[nn.Module, Tensor, Tensor]] = []

        def push(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            activity, tangent = forward_ad.unpack_dual(output)
            direction = _direction(activity, generator)
            perturbed.append((module, forward_ad.unpack_dual(args[0]).primal, direction))
            return forward_ad.make_dual(activity, direction if tangent is None else tangent + direction)

        handles = [module.register_forward_hook(push) for module in _owners(scored)]
        try:
            with torch.no_grad(), forward_ad.dual_level():
                with self.context(index):
                    h, logits = scored(x)
                losses, slopes = forward_ad.unpack_dual(F.cross_entropy(logits, y, reduction="none"))
                h, logits = forward_ad.unpack_dual(h).primal, forward_ad.unpack_dual(logits).primal
        finally:
            for handle in handles:
                handle.remove()
        with still_statistics(scored):
            for module, inputs, direction in perturbed:
                assert slopes is not None
                along = (scale / len(y)) * slopes.view(-1, *[1] * (direction.dim() - 1)) * direction
                with self.context(index):
                    activity = module.forward(inputs)  # not a call: it is no pass of the network
                torch.autograd.backward(activity, along.to(activity.dtype))
        return losses.mean(), logits, h

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, "direction", self._step, self._passes, index))


class _Scored(nn.Module):
    """A block and the logits of its objective, as one module."""

    def __init__(self, block: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.block = block
        self.objective = objective

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.block(x)
        logits = self.objective.logits(h)
        assert logits is not None
        return h, logits


def _owners(module: nn.Module) -> list[nn.Module]:
    """Return the modules that have trainable parameters of their own."""
    return [part for part in module.modules() if any(p.requires_grad for p in part.parameters(recurse=False))]


def _direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) entries in the shape, data type and layout of a tensor; on the host, whatever its device."""
    return torch.empty_like(like).copy_(torch.randn(like.shape, generator=generator))


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
