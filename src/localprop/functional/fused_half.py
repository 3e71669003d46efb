"""The chain of `localprop.functional.fused.conv_norm_relu_pool` for maps of half precision, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from localprop.functional.convolution import (
    Convolution,
    MaxPool,
    convolution_gradients,
    in_memory_order,
    signed_convolution,
)

aten = torch.ops.aten
_BYTES_IN_CACHE = 2**19


class _ConvNormReluPoolInHalf(torch.autograd.Function):
    """Pool before normalising, as in single precision, with gradients that are rounded once.

    What PyTorch does to a number of half precision takes it three times as long as to move it. So the ReLU and the
    scattering of gradients work on the bits of numbers; statistics, gains and sums are of single precision. At a
    maximum the gradient that comes down is so much larger than what normalisation takes off it that a sum in half
    precision would swallow the latter, with the same sign everywhere.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        convolution: Convolution,
        pool: MaxPool | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sign = torch.where(gamma < 0, -1.0, 1.0).to(gamma.dtype)
        y = signed_convolution(x, weight, sign, convolution)
        zeros = torch.zeros_like(gamma)  # running statistics, which stay as they are, but tell PyTorch the precision
        mean, var = torch.batch_norm_update_stats(y, zeros, zeros.clone(), 0.0)
        pooled, indices = (y, None) if pool is None else aten.max_pool2d_with_indices(y, *pool)
        h = F.batch_norm(pooled, mean, var, gamma.abs(), beta, training=False, eps=eps)
        _rectify(h, mean, gamma * (var + eps).rsqrt(), beta)
        ctx.save_for_backward(x, weight, gamma, sign, mean, var, h, None if pool is None else pooled, indices)
        ctx.y, ctx.eps, ctx.convolution, ctx.has_bias = y, eps, convolution, bias is not None
        true_mean = mean * sign if bias is None else torch.addcmul(bias, mean, sign)
        size = y.numel() // y.shape[1]
        unbiased_var = var * (size / (size - 1))
        ctx.mark_non_differentiable(true_mean, unbiased_var)
        return h, true_mean, unbiased_var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, sign, mean, var, h, pooled, indices = ctx.saved_tensors
        y, ctx.y = ctx.y, None  # with pooling it becomes its own gradient below
        if y is None:
            y = signed_convolution(x, weight, sign, ctx.convolution)
        gain = gamma.abs()
        inverse_sigma = (var + ctx.eps).rsqrt()
        grad = aten.threshold_backward(grad_h, h, 0)
        if pooled is None:
            grad_y, grad_gamma, grad_beta = aten.native_batch_norm_backward(
                grad, y, gain, None, None, mean, inverse_sigma, True, ctx.eps, [True, True, True]
            )
        else:
            _, grad_gamma, grad_beta = aten.native_batch_norm_backward(
                grad, pooled, gain, mean, var, mean, inverse_sigma, False, ctx.eps, [False, True, True]
            )
            size = y.numel() // y.shape[1]
            scale = gain * inverse_sigma
            slope = -scale * inverse_sigma * grad_gamma / size
            offset = -scale * grad_beta / size - slope * mean
            grad_y = _transform(y, slope, offset)
            _write(grad_y, indices, _transform_and_add(pooled, slope, offset, grad, scale))
        grad_x, grad_weight = convolution_gradients(grad_y, x, weight, sign, ctx.convolution, ctx.needs_input_grad[:2])
        grad_bias = torch.zeros_like(grad_beta) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, grad_gamma * sign, grad_beta, None, None, None


def conv_norm_relu_pool_in_half(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    convolution: Convolution,
    pool: MaxPool | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `localprop.functional.fused.conv_norm_relu_pool` for an x of half precision; see there."""
    outputs: tuple[Tensor, Tensor, Tensor] = _ConvNormReluPoolInHalf.apply(
        x, weight, bias, gamma, beta, eps, convolution, pool
    )
    return outputs


def _rectify(h: Tensor, *numbers: Tensor) -> None:
    """Set negative entries to 0, in place; a NaN in the numbers that h was made with stays a NaN.

    Negative numbers are negative as integers too. But so are some NaN.
    """
    if torch.isfinite(torch.cat(numbers)).all():
        h.view(torch.int16).clamp_min_(0)
    else:
        h.relu_()


def _transform(maps: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Compute slope maps + offset by channel, in place, in the precision of the slope."""
    mean, var, unused = torch.zeros_like(slope), torch.ones_like(slope), slope.new_empty(0)
    aten.native_batch_norm.out(
        maps, slope, offset, mean, var, False, 0.0, 0.0, out=maps, save_mean=unused, save_invstd=unused
    )
    return maps


def _transform_and_add(maps: Tensor, slope: Tensor, offset: Tensor, added: Tensor, factor: Tensor) -> Tensor:
    """Compute slope maps + offset + factor added by channel, in the precision of the slope, and round it once."""
    out = torch.empty_like(maps)
    samples = max(1, _BYTES_IN_CACHE // (maps[0].numel() * maps.element_size()))
    slope, offset, factor = (each.view(-1, 1, 1) for each in (slope, offset, factor))
    for piece, more, into in zip(*(torch.split(each, samples) for each in (maps, added, out)), strict=True):
        total = piece.to(slope.dtype)
        torch.addcmul(offset, total, slope, out=total)
        into.copy_(total.addcmul_(more.to(slope.dtype), factor))
    return out


def _write(maps: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write values (N, C, h, w) into maps (N, C, H, W) at indices of their positions, moving through memory in order.

    As integers, which are moved without a conversion.
    """
    rows, at, written = in_memory_order(maps, indices, values)
    rows.view(torch.int16).scatter_(1, at, written.view(torch.int16))
