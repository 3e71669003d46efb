"""PEPITA: a second pass, with the error added to the input, shows every layer what to change."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.precision import at_least_single
from localprop.network import LocalNetwork, body_and_tail, still_statistics
from localprop.rules.base import Rule, block_groups
from localprop.types import BlockSpec, BlockStep, Key

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Pepita(Rule):
    """Train every layer by how its activity differs between two passes, on x and on x + F e.

    With the error e = softmax(logits) - onehot(y) of the first pass, a_l the activity of block l (its output before
    closing pooling), x_l the input of its layer, and ' for the second pass:
        grad W_l = (1/N) sum_n (a_l - a_l') x_l'^T;  of the last block: (1/N) sum_n e x_L'^T.
    The gradient of a convolution is summed over positions; biases get the same with x = 1. A step's loss is the
    cross-entropy of the first pass, which all blocks serve.

    Args:
        net: The network.
        specs: Its blocks.
        strength: kappa of the feedback F, whose entries are N(0, kappa^2 2 / D) for D inputs; positive.

    Raises:
        ValueError: A setting out of its range, or a block whose layer PEPITA cannot train.

    Cost: two passes; the activities of all blocks are kept between them, and Z D numbers of F.

    Note: Normalisation layers have no rule and stay as they are; in the second pass batch normalisation uses that
        pass's own statistics and moves no running ones. Dropout masks are the same in both passes.

    References: Dellaferrera and Kreiman, "Error-driven Input Modulation: Solving the Credit Assignment Problem without
        a Backward Pass", ICML 2022, arXiv:2201.11665.
    """

    feedback: Tensor

    def __init__(self, net: LocalNetwork, specs: Sequence[BlockSpec], *, strength: float = 0.05) -> None:
        super().__init__(net, specs)
        check_positive("strength", strength)
        for block, spec in zip(net.blocks, specs, strict=True):
            _check(block, spec)
        shape = specs[0].input_shape
        std = strength * math.sqrt(2 / math.prod(shape))
        self.register_buffer("feedback", std * torch.randn(specs[0].num_classes, *shape))
        self._inputs: dict[int, Tensor] = {}

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block."""
        return block_groups(self.net)

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block of the second pass; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for: the error comes from the last one.
        """
        self.refuse_stretch(blocks, "pepita's error passes through the whole network", "use all blocks")
        whole = range(len(self.net))
        self.check_batch(x, y, whole)
        self._passes += 1
        groups = self.parameter_groups()
        try:
            with torch.no_grad():
                clean = [h for _, _, h, _ in self._run(x)]
                logits = clean.pop()
                logits = at_least_single(logits)
                loss = F.cross_entropy(logits, y)
                error = logits.softmax(1) - F.one_hot(y, logits.shape[1])
                modulated = x + (error.to(x.dtype) @ self.feedback.flatten(1).to(x.dtype)).view_as(x)
            last = whole[-1]
            for index, _, h, _ in self.net.iter_blocks(modulated, at_activation=whole[:-1], context=self._second_pass):
                if (index, "block") not in groups:
                    continue
                self._write(index, error if index == last else clean[index] - h, scale / len(y))
                prediction = logits if index == last else None
                yield BlockStep((index, "block"), loss, prediction, prediction)
        except BaseException:
            self.clear_gradients()
            raise
        finally:
            self._inputs.clear()

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return None for every hidden block, and the network's logits; see `Rule.exits`."""
        self.check_input(x)
        with torch.no_grad():
            *_, (_, _, logits, _) = self._run(x)
            return [None] * (len(self.net) - 1) + [at_least_single(logits)]

    def _run(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        return self.net.iter_blocks(x, at_activation=range(len(self.net) - 1), context=self.context)

    @contextlib.contextmanager
    def _second_pass(self, index: int) -> Iterator[None]:
        block = self.net.blocks[index]

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[index] = args[0]

        handle = _layer(block).register_forward_pre_hook(keep)
        try:
            with self.context(index), still_statistics(block), torch.no_grad():
                yield
        finally:
            handle.remove()

    def _write(self, index: int, difference: Tensor, scale: float) -> None:
        """Add the gradients of a block: for its layer those along `difference`, zeros for the rest."""
        layer = _layer(self.net.blocks[index])
        inputs = self._inputs.pop(index).to(layer.weight.dtype)
        activity = layer.forward(inputs)  # not a call: it is no pass of the network
        if activity.requires_grad:
            torch.autograd.backward(activity, scale * difference.to(activity.dtype))
        for parameter in self.net.blocks[index].parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _layer(block: nn.Module) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    return next(module for module in block.modules() if isinstance(module, _LAYERS))


def _check(block: nn.Module, spec: BlockSpec) -> None:
    """Refuse a block that is not one layer with functions of its activities after it."""
    layers = [module for module in block.modules() if isinstance(module, _LAYERS)]
    if len(layers) != 1:
        raise ValueError(
            f"pepita: trains blocks of one nn.Linear, nn.Conv1d or nn.Conv2d each, block {spec.name!r} has "
            f"{len(layers)}; cut the network at every layer"
        )
    body, _ = body_and_tail(copy.deepcopy(block).eval())
    shapes: list[torch.Size] = []
    _layer(body).register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    weight = layers[0].weight
    with torch.no_grad():
        activity = body(torch.zeros(2, *spec.input_shape, dtype=weight.dtype, device=weight.device))
    if activity.shape != shapes[0]:
        raise ValueError(
            f"pepita: compares activities of the layer's own shape, the layer of block {spec.name!r} gives "
            f"{tuple(shapes[0][1:])} and the block {tuple(activity.shape[1:])} before its closing pooling; "
            "put the pooling at the end of the block"
        )
