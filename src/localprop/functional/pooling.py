"""Averages that turn a block's output into one feature vector a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.precision import at_least_single

_NUMBERS_IN_CACHE = 2**18
_END_IN_RELU = ("ReluBackward0", "_ConvNormReluPoolBackward", "_ConvNormReluPoolInHalfBackward")


class _MeanOverPositions(torch.autograd.Function):
    """Mean whose gradient has the memory layout of the input.

    The gradient of `h.mean((2, 3))` is an expanded tensor of stride 0. Behind it every backward function of the block
    falls off its fast path, which costs a local step all that it saves over backprop. Only a ReLU is given it: it
    makes a map in the layout of its own output out of it, so that none of equal numbers has to be made before.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.shape, ctx.stride, ctx.dtype, ctx.dims = h.shape, h.stride(), h.dtype, dims
        ctx.expand = h.grad_fn is not None and h.grad_fn.name() in _END_IN_RELU
        return _mean_in_single(h, dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        num_positions = 1
        for dim in ctx.dims:
            num_positions *= ctx.shape[dim]
            grad = grad.unsqueeze(dim)
        expanded = (grad / num_positions).to(ctx.dtype).expand(ctx.shape)
        if ctx.expand:
            return expanded, None
        return torch.empty_strided(ctx.shape, ctx.stride, dtype=ctx.dtype, device=grad.device).copy_(expanded), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, dims: None) -> Tensor:
        return _mean_in_single(tangent, ctx.dims)


def _mean_in_single(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Take the mean in at least float32.

    A CPU converts a whole map before it adds, through memory; in pieces it does so in its cache, eight times faster.
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    if h.dtype == dtype or not h.is_cpu or not h.numel():
        return h.mean(dims, dtype=dtype)
    pieces = torch.split(h, max(1, _NUMBERS_IN_CACHE // h[0].numel()))
    return torch.cat([piece.to(dtype).mean(dims) for piece in pieces])


class _MeanOverWindows(torch.autograd.Function):
    """Mean over windows that tile a map, with a gradient that is spread in the memory layout of the map.

    PyTorch's own is two to three times slower, the more so as the gradient behind a flattened map has another layout.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, kernel: tuple[int, int]) -> Tensor:
        ctx.shape, ctx.stride, ctx.kernel = h.shape, h.stride(), kernel
        return F.avg_pool2d(h, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        kh, kw = ctx.kernel
        out = torch.empty_strided(ctx.shape, ctx.stride, dtype=grad.dtype, device=grad.device)
        windows = torch.unflatten(torch.unflatten(out, 3, (-1, kw)), 2, (-1, kh))
        windows.copy_((grad / (kh * kw))[:, :, :, None, :, None].expand_as(windows))
        return out, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, kernel: None) -> Tensor:
        return F.avg_pool2d(tangent, ctx.kernel)


def average_positions(h: Tensor, channel_axis: int = 1) -> Tensor:
    """Average features over all positions: hbar_c = (1/K) sum_k h_{c,k}.

    Half precision is averaged, and returned, in float32.

    Args:
        h: Block output. Shape (N, C, ...) with `channel_axis` 1, or (N, K, C) with `channel_axis` -1.
        channel_axis: Axis of the channels.

    Shape: (N, C). A flat (N, C) comes back as it is, in at least float32.
    """
    channel_axis %= h.dim()
    dims = tuple(dim for dim in range(1, h.dim()) if dim != channel_axis)
    if not dims:
        return at_least_single(h)
    averaged: Tensor = _MeanOverPositions.apply(h, dims)
    return averaged


def average_windows(h: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Average a map over windows side by side; those over its border average what is there of them.

    Args:
        h: Maps. Shape (N, C, H, W).
        kernel: Height kh and width kw of a window.

    Shape: (N, C, ceil(H / kh), ceil(W / kw)), in the precision of h. Rounding up keeps the border of maps that the
        kernel does not divide, and the published feature counts.
    """
    if h.shape[2] % kernel[0] or h.shape[3] % kernel[1]:
        return F.avg_pool2d(h, kernel, ceil_mode=True)
    averaged: Tensor = _MeanOverWindows.apply(h, kernel)
    return averaged


def averaged_output(h: Tensor, channel_axis: int) -> Tensor:
    """Average a block's output over its positions; a flat output comes back as it is.

    Args:
        h: Shape (N, ...).
        channel_axis: Axis of the channels of one sample, 0 or -1.

    Shape: (N, C), in at least float32.
    """
    return average_positions(h, 1 if channel_axis == 0 else -1)


def average_chunks(h: Tensor, chunks: int) -> Tensor:
    """K-averaging of a flat output: hbar_c = (1/K) sum_k h_{k C + c}, with C = H / K.

    Args:
        h: Flat block output of width H, index order (k, c). Shape (N, H).
        chunks: K, the number of contiguous pieces; must divide H.

    Shape: (N, H / K).

    Raises:
        ValueError: `chunks` does not divide the width.

    References: Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary
        Networks", ICLR 2024.
    """
    if chunks < 1 or h.shape[1] % chunks:
        raise ValueError(f"chunks: must divide the feature width {h.shape[1]}, got {chunks}")
    if chunks == 1:
        return average_positions(h)
    return average_positions(h.reshape(h.shape[0], chunks, -1), channel_axis=-1)


def standard_layout(h: Tensor, channel_axis: int) -> Tensor:
    """View a block's output as the functions below read it: flat (N, D), tokens (N, K, C) or maps (N, C, H, W).

    A sequence (N, C, L) becomes tokens (N, L, C), and channels behind the positions of a map go before them.

    Args:
        h: Block output.
        channel_axis: Axis of the channels of one sample: 0 or -1.
    """
    if h.dim() == 3:
        return h if channel_axis == -1 else h.transpose(1, 2)
    return h if channel_axis == 0 else h.movedim(-1, 1)


def native_layout(h: Tensor, channel_axis: int) -> Tensor:
    """Undo `standard_layout`."""
    if h.dim() == 3:
        return standard_layout(h, channel_axis)
    return h if channel_axis == 0 else h.movedim(1, -1)


def budget_kernel(channels: int, height: int, width: int, budget: int) -> tuple[int, int]:
    """Find the average-pooling kernel that brings a map under a feature budget.

    The kernel (kh, kw) is doubled alternately, height first, until C ceil(H / kh) ceil(W / kw) <= budget, or until it
    covers the map.

    Args:
        channels: C.
        height: H.
        width: W.
        budget: Largest number of features wanted.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019.
    """
    kernel = [1, 1]
    size = (height, width)
    axis = 0
    while channels * -(-height // kernel[0]) * -(-width // kernel[1]) > budget and tuple(kernel) != size:
        kernel[axis] = min(2 * kernel[axis], size[axis])
        axis = 1 - axis
    return kernel[0], kernel[1]


def pool_map_to_budget(h: Tensor, budget: int) -> Tensor:
    """Average-pool a map until it has at most `budget` features (see `budget_kernel`); it stays a map.

    Args:
        h: Block output. Shape (N, C, H, W), (N, K, C) (tokens: averaged over all if over budget) or (N, D).
        budget: Largest number of features wanted.

    Shape: (N, C, h, w), (N, K, C), (N, C) or (N, D), in at least float32.
    """
    if h.dim() == 4:
        kernel = budget_kernel(h.shape[1], h.shape[2], h.shape[3], budget)
        h = h if kernel == (1, 1) else average_windows(h, kernel)
    elif h.dim() == 3 and h.shape[1] * h.shape[2] > budget:
        return average_positions(h, channel_axis=-1)
    return at_least_single(h)


def pool_to_budget(h: Tensor, budget: int) -> Tensor:
    """Average-pool a map as `pool_map_to_budget` does, and flatten it: shape (N, P), in at least float32."""
    return pool_map_to_budget(h, budget).flatten(1)


def num_pooled_features(shape: tuple[int, ...], budget: int) -> int:
    """Count the features that `pool_to_budget` leaves of a sample of shape `shape`.

    Raises:
        ValueError: The budget is below 1.
    """
    if budget < 1:
        raise ValueError(f"feature_budget: must be at least 1, got {budget}")
    return pool_to_budget(torch.zeros(1, *shape), budget).shape[1]


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) that `as_map` gives a sample of a block's output.

    Args:
        shape: (C, H, W), (K, C) or (D,).
    """
    if len(shape) == 1:
        return shape[0], 1, 1
    if len(shape) == 2:
        return shape[1], *_grid(shape[0])
    return shape[0], math.prod(shape[1:-1]), shape[-1]


def as_map(h: Tensor) -> Tensor:
    """Lay a block's output out as maps, without losing what a convolution or a pooling needs.

    K tokens lie on a square grid if K is a square; a class token before a square number of tokens is left out; other
    tokens lie on a line. A flat output has one position.

    Args:
        h: Block output. Shape (N, C, H, W), (N, K, C) or (N, D).

    Shape: (N, C, H, W).
    """
    if h.dim() == 2:
        return h[:, :, None, None]
    if h.dim() == 3:
        height, width = _grid(h.shape[1])
        return h[:, -height * width :].transpose(1, 2).reshape(h.shape[0], h.shape[2], height, width)
    return h.flatten(2, -2)


def _grid(num_tokens: int) -> tuple[int, int]:
    side = math.isqrt(num_tokens)
    return (side, side) if side * side in (num_tokens, num_tokens - 1) and side > 1 else (num_tokens, 1)
