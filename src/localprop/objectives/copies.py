"""Copies of later blocks, as parts of the auxiliary network of an earlier one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localprop.objectives.heads import GlobalAverage, native, standard
from localprop.types import BlockSpec


class BlockPair(nn.Module):
    """Add up a trained copy of a block and one that follows the block slowly: b(x) = trained(x) + average(x).

    Gradients pass through both to x; of the two only `trained` is trained.

    Args:
        block: The block; both copies start from its parameters.

    References: Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.trained = copy.deepcopy(block).requires_grad_()
        self.average = copy.deepcopy(block).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both copies' outputs."""
        both: Tensor = self.trained(x) + self.average(x)
        return both

    @torch.no_grad()
    def follow(self, block: nn.Module, momentum: float) -> None:
        """Move the average: parameters <- m parameters + (1 - m) theta of `block`; buffers go their own way."""
        for mean, parameter in zip(self.average.parameters(), block.parameters(), strict=True):
            mean.lerp_(parameter, 1 - momentum)


def copied_blocks(spec: BlockSpec, blocks: Sequence[tuple[nn.Module, BlockSpec]]) -> nn.Sequential:
    """Chain fresh copies of later blocks behind a block's output, and average what they give over positions.

    Where blocks are left out, the shapes are fitted: maps are average-pooled to the size that the copy reads, and a
    1x1 convolution changes their channels; tokens and flat outputs get a linear layer. Before the classifier of a
    single copy stands a batch normalisation, as published.

    Args:
        spec: The block that is trained.
        blocks: The later blocks and their descriptions, in order.

    Shape: (N, *spec.standard_shape) -> (N, C) of the last copy.

    Raises:
        ValueError: Shapes that cannot be fitted.

    References: Ma et al., "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024.
    """
    layers: list[nn.Module] = native(spec)
    last = spec
    for block, later in blocks:
        layers += [*_fitting(last.shape, later.input_shape), fresh_copy(block)]
        last = later
    normalised = [nn.BatchNorm1d(last.shape[last.channel_axis])] if len(blocks) == 1 else []
    return nn.Sequential(*layers, *standard(last), GlobalAverage(last.standard_shape), *normalised)


def fresh_copy(block: nn.Module) -> nn.Module:
    """Copy a block's architecture and draw its parameters anew, all of them trainable.

    Args:
        block: The block. Parameters of a module without a method `reset_parameters` keep their values in the copy.
    """
    copied = copy.deepcopy(block)
    for module in copied.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
    return copied.requires_grad_()


def _fitting(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[nn.Module]:
    if shape == wanted:
        return []
    if len(shape) == len(wanted) == 3:
        resize = [] if shape[1:] == wanted[1:] else [nn.AdaptiveAvgPool2d(wanted[1:])]
        return [*resize, *([] if shape[0] == wanted[0] else [nn.Conv2d(shape[0], wanted[0], 1, bias=False)])]
    if shape[:-1] == wanted[:-1]:
        return [nn.Linear(shape[-1], wanted[-1], bias=False)]
    if len(wanted) == 1:
        width = shape[-1] if len(shape) == 2 else shape[0]
        return [GlobalAverage(shape), nn.Linear(width, wanted[0], bias=False)]
    raise ValueError(f"network: a block with outputs of shape {shape} cannot be followed by one that reads {wanted}")
