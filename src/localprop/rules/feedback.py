"""Backpropagation whose error is sent back by other weights: feedback alignment and sign-symmetric feedback."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from localprop.functional import feedback
from localprop.functional.feedback import Initialisation
from localprop.functional.precision import at_least_single
from localprop.network import LocalNetwork
from localprop.rules.backprop import Backprop
from localprop.rules.base import groups_from_the_last
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, BlockStep, Key

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS: Mapping[Any, Callable[..., Tensor]] = {
    F.linear: feedback.linear,
    F.conv1d: feedback.convolution,
    F.conv2d: feedback.convolution,
    F.conv3d: feedback.convolution,
}


class Feedback(nn.Module, ABC):
    """Give the weights that send the error back through one layer.

    Args:
        weight: W of the layer, shape (O, I, ...).
    """

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return B for the present W, in its shape. What is random in it is drawn on the host."""


class RandomFeedback(Feedback):
    """B drawn once, uniform as by Kaiming: |B| <= sqrt(6 / fan_in). It knows nothing of W."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", nn.init.kaiming_uniform_(torch.empty(weight.shape, dtype=weight.dtype)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the drawn matrix."""
        return self.matrix


class SignFeedback(Feedback):
    """B = |M| sign(W), with a magnitude that is chosen once: one number, or one a weight.

    Args:
        weight: W of the layer.
        magnitude: |M|, of no axes or of W's shape.
    """

    def __init__(self, weight: Tensor, magnitude: Tensor) -> None:
        super().__init__()
        self.magnitude: Tensor
        self.register_buffer("magnitude", magnitude.to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Give the magnitude the signs of W."""
        return weight.sign() * self.magnitude


class RedrawnSignFeedback(Feedback):
    """B = |M_t| sign(W), with M_t drawn anew every step as weights are at their start.

    Args:
        weight: W of the layer.
        initialisation: "kaiming" or "xavier"; see `functional.feedback.initial_std`.
    """

    def __init__(self, weight: Tensor, initialisation: Initialisation) -> None:
        super().__init__()
        self.initialisation = initialisation

    def forward(self, weight: Tensor) -> Tensor:
        """Draw the magnitude, and give it the signs of W."""
        magnitude = feedback.initial_magnitude(weight, self.initialisation)
        return weight.sign() * magnitude.to(weight.device, non_blocking=True)


class BackwardWeights(TorchFunctionMode):
    """Run linear layers and convolutions inside as they are, but let their gradients go back by other weights.

    The layers are known by their weights, so no module is changed and nothing is left behind.

    Args:
        matrices: W -> B. Layers whose weight is not among them are left alone.
    """

    def __init__(self, matrices: Mapping[Tensor, Tensor]) -> None:
        super().__init__()
        self.matrices = matrices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Put the layer's function with a backward pass of its own in the place of PyTorch's."""
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if weight in self.matrices:
                return _FUNCTIONS[func](*args, **kwargs, feedback=self.matrices[weight])
        return func(*args, **kwargs)


class FeedbackAlignment(Backprop):
    """Train by the network's error, sent back through each layer by B in the place of W.

    delta_{l-1} = (B_l^T delta_l) * f'(a_{l-1}); grad W_l = delta_l h_{l-1}^T. The output layer gets its true gradient.
    With B = W it is backpropagation, bit by bit.

    The unit is the layer: every Linear, Conv1d, Conv2d and Conv3d has a B, wherever it stands in a block. All else
    (normalisation, nonlinearities, skip connections, products of attention) is backpropagated truly.

    Groups are yielded from the last block to the first, and each block's graph is gone by then.

    Args:
        net: The network.
        specs: Its blocks.
        make_feedback: Gives the feedback of a layer from its weight.

    Shape: B has the shape of W.

    Cost: one more tensor of the size of the weights at most; no parameters. Activations of all blocks are alive when
        the backward pass begins, as in backpropagation.

    Raises:
        ValueError: The network has no such layer.

    Note: Weights that are not a module's of these kinds, such as all of `nn.MultiheadAttention`'s, send the error
        back truly. A ViT whose attention is written with `nn.Linear`, such as timm's, is converted as a whole.

    References: Lillicrap et al., Nature Communications 2016; Liao, Leibo and Poggio, "How Important Is Weight Symmetry
        in Backpropagation?", AAAI 2016, arXiv:1510.05067; Moskovitz, Litwin-Kumar and Abbott, "Feedback
        alignment in deep convolutional networks", 2018, arXiv:1812.06488.
    """

    def __init__(
        self, net: LocalNetwork, specs: Sequence[BlockSpec], make_feedback: Callable[[Tensor], Feedback]
    ) -> None:
        super().__init__(net, specs)
        self.feedback = nn.ModuleList(make_feedback(weight) for weight, _ in self._layers())
        if not self.feedback:
            raise ValueError(
                "net: feedback alignment replaces backward weights of Linear, Conv1d, Conv2d and Conv3d modules, and "
                "the network has none; build it of these, or use bp"
            )

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block, from the last to the first."""
        return groups_from_the_last(self.net)

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") from the last block to the first; see `Rule.steps`.

        Only the last block has a loss and logits. Logs: `alignment_degrees` and `norm_ratio` of its layers' W and B.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for.
        """
        self.check_whole(x, y, blocks)
        groups = self.parameter_groups()
        self._passes += 1
        with self.cleared_if_abandoned():
            matrices = self.backward_weights()
            h, loss, logits = self._forward_blocks(x, y, matrices)
            head: Tensor | None = loss if scale == 1.0 else loss * scale
            delta: Tensor | None = None
            loss, logits = loss.detach(), logits.detach()
            for index in reversed(range(len(self.net))):
                parameters = groups.get((index, "block"), [])
                assert head is not None
                below = h.pop() if h else None
                delta = _send_back(head, delta, parameters, below)
                head = below
                if parameters:
                    layers = [(w, matrices[w]) for w, block in self._layers() if block == index]
                    logs = feedback.alignment(*zip(*layers, strict=True)) if layers else {}
                    step = BlockStep((index, "block"), logs=logs)
                    is_last = index == len(self.net) - 1
                    yield replace(step, loss=loss, logits=logits, output=logits) if is_last else step
                if delta is None:
                    break  # all below is frozen

    def _forward_blocks(
        self, x: Tensor, y: Tensor, matrices: Mapping[Tensor, Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the hidden blocks' outputs in one graph, the loss and the logits."""
        h = [x.detach()]
        for index, block in enumerate(self.net.blocks):
            with self.context(index), BackwardWeights(matrices):
                h.append(block(h[-1]))
        logits = h.pop()
        logits = at_least_single(logits)
        return h[1:], F.cross_entropy(logits, y), logits

    @torch.no_grad()
    def backward_weights(self) -> dict[Tensor, Tensor]:
        """Return W -> B of every layer for this step; parts of an accumulated batch share what is drawn."""
        matrices: dict[Tensor, Tensor] = {}
        for number, ((weight, _), layer_feedback) in enumerate(zip(self._layers(), self.feedback, strict=True)):
            with seeded(derive(self.seed, "feedback", self._step, number), torch.device("cpu")):
                matrices[weight] = layer_feedback(weight.detach())
        return matrices

    def _layers(self) -> list[tuple[Tensor, int]]:
        """Return the weights that have a feedback, in order, each once, with their blocks."""
        found: dict[Tensor, int] = {}
        for index, block in enumerate(self.net.blocks):
            for module in block.modules():
                # The output projection of nn.MultiheadAttention is read by its parent and never called.
                if isinstance(module, _LAYERS) and not isinstance(module, NonDynamicallyQuantizableLinear):
                    found.setdefault(module.weight, index)
        return list(found.items())


def _send_back(
    head: Tensor, delta: Tensor | None, parameters: Sequence[nn.Parameter], below: Tensor | None
) -> Tensor | None:
    """Add the gradients of one block's parameters to `.grad`, and return that of what lies below it; None if frozen."""
    sent = [] if below is None or not below.requires_grad else [below]
    if not parameters and not sent:
        return None
    found = torch.autograd.grad(head, [*parameters, *sent], delta, allow_unused=True)
    own = [(p, g) for p, g in zip(parameters, found, strict=False) if g is not None]
    if own:  # as every backward pass adds them: in the parameter's layout, and sharing no memory with what is sent on
        torch.autograd.backward([p for p, _ in own], [g for _, g in own])
    return found[-1] if sent else None
