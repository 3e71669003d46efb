"""A convolution whose output channels have signs, and how layers move over maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Convolution(NamedTuple):
    """How a convolution moves over its input, as in `torch.nn.Conv2d`."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class MaxPool(NamedTuple):
    """How a maximum pooling moves over its input, as in `torch.nn.MaxPool2d`."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


def signed_convolution(x: Tensor, weight: Tensor, sign: Tensor, convolution: Convolution) -> Tensor:
    """Compute the convolution of x with sign weight, in the precision of x.

    Args:
        x: Shape (N, C_in, H, W).
        weight: Shape (C, C_in / groups, kh, kw).
        sign: 1 or -1 for each output channel. Shape (C,).
        convolution: How it moves.
    """
    stride, padding, dilation, groups = convolution
    signed = (weight * sign.view(-1, 1, 1, 1)).to(x.dtype)
    return F.conv2d(x, signed, None, stride, padding, dilation, groups)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, sign: Tensor, convolution: Convolution, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of x and of the weight of `signed_convolution`.

    Args:
        grad: Gradient of its output.
        x: Its input.
        weight: Its weight.
        sign: Its signs.
        convolution: How it moves.
        needed: Whether that of x is needed, and that of the weight; what is not is None.
    """
    stride, padding, dilation, groups = convolution
    signs = sign.view(-1, 1, 1, 1)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        (weight * signs if needed[0] else weight).to(x.dtype),
        None,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        groups,
        [*needed, False],
    )
    return grad_x, None if grad_weight is None else grad_weight * signs


def in_memory_order(maps: Tensor, *others: Tensor) -> list[Tensor]:
    """View maps with their positions on axis 1, so that walking along the axes moves through memory in order.

    Args:
        maps: Shape (N, C, H, W), contiguous or channels last; the view shares their memory.
        others: Shape (N, C, h, w), laid out as the maps.

    Shape: (N C, H W) or (N, H W, C).
    """
    if maps.is_contiguous():
        return [maps.view(-1, maps.shape[2] * maps.shape[3]), *(each.flatten(2).flatten(0, 1) for each in others)]
    rows = maps.permute(0, 2, 3, 1).view(len(maps), -1, maps.shape[1])  # channels last, or an error
    return [rows, *(each.permute(0, 2, 3, 1).flatten(1, 2) for each in others)]
