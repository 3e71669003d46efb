"""SoftHebb: hidden layers learn by soft competition, without labels and without an error."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.hebbian import competition, oja_change
from localprop.functional.precision import full_precision
from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.rules.greedy import Greedy
from localprop.types import BlockStep

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class SoftHebb(Greedy):
    """Train the layers of hidden blocks by a Hebbian rule, and the probes that read the blocks by their own losses.

    For every linear or convolutional layer of a hidden block, with x its input and u = W x at each position:
        y = softmax(u / tau) over units, sign-flipped for all but the winner;
        grad w_k = -mean_n y_{n,k} (x_n - u_{n,k} w_k).
    The last block is trained by the cross-entropy of its logits. A step's loss is that of the block's probe.

    Args:
        net: The network.
        objectives: A probe for every hidden block; the last one scores the network's logits.
        temperature: tau > 0.

    Raises:
        ValueError: The temperature is not positive, or a hidden block has no linear or convolutional layer.

    Note: Biases and normalisation layers have no Hebbian rule and stay as they are. The network keeps its own
        nonlinearities, where the paper has its triangle activation; the optimiser's learning rate takes the place of
        the paper's, which falls as a unit's weights come near length 1.

    References: Journe et al., "Hebbian Deep Learning Without Feedback", ICLR 2023, arXiv:2209.11883.
    """

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective], *, temperature: float = 1.0) -> None:
        super().__init__(net, objectives)
        check_positive("temperature", temperature)
        for name, block in zip(net.names[:-1], net.blocks, strict=False):
            if not any(isinstance(module, _LAYERS) for module in block.modules()):
                raise ValueError(
                    f"softhebb: block {name!r} has no nn.Linear, nn.Conv1d or nn.Conv2d, which are what it trains; "
                    "cut the network elsewhere"
                )
        self.temperature = temperature
        self._changes: dict[Tensor, Tensor] = {}

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`."""
        hidden = range(len(self.net) - 1)
        with contextlib.closing(self._greedy_steps(x, y, blocks, scale)) as steps:
            for step in steps:
                index = step.key[0]
                if index is not None and index in hidden:
                    for parameter in self.net.blocks[index].parameters():
                        if parameter.requires_grad:
                            change = self._changes.get(parameter)
                            gradient = torch.zeros_like(parameter) if change is None else -scale * change
                            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                self._changes.clear()
                yield step

    def _greedy_steps(
        self, x: Tensor, y: Tensor, blocks: range | None, scale: float
    ) -> Generator[BlockStep, None, None]:
        yield from super().steps(x, y, blocks=blocks, scale=scale)

    @contextlib.contextmanager
    def context(self, block: int, part: str = "block") -> Iterator[None]:
        """Run a block's forward pass as every rule does, and in training compute its Hebbian changes on the way."""
        if part != "block" or block == len(self.net) - 1 or not torch.is_grad_enabled():
            with super().context(block, part):
                yield
            return
        handles = []
        for module in self.net.blocks[block].modules():
            if isinstance(module, _LAYERS) and module.weight.requires_grad:
                handles += [module.register_forward_pre_hook(_record), module.register_forward_hook(self._learn)]
        try:
            with super().context(block, part), torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _learn(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Now, not after the block: what follows the layer may overwrite its output in place.
        torch.set_grad_enabled(False)
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        with full_precision(output):
            u = output.detach().to(layer.weight.dtype)
            if layer.bias is not None:
                u = u - layer.bias.view(-1, *[1] * (u.dim() - 1 - axis))
            y = competition(u, self.temperature, axis) / (u.numel() // u.shape[axis])
            # The gradient of <y, W x> with respect to W is the sum of y x, whatever the kind of layer.
            (correlation,) = torch.autograd.grad(output, layer.weight, y.to(output.dtype))
            strength = (y * u).sum([dim for dim in range(u.dim()) if dim != axis])
            self._changes[layer.weight] = oja_change(correlation, strength, layer.weight)
        return output.detach()


def _record(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    torch.set_grad_enabled(True)  # for this layer alone: the context around the block switches it off
