"""Chains of layers as one function each, with a backward pass that moves less memory than the chain's own.

The values are those of the separate layers up to rounding. What is saved is passes over the largest tensors: on a CPU
a local step spends as long on normalisation, ReLU and pooling as on convolutions.
"""

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
from localprop.functional.fused_half import conv_norm_relu_pool_in_half

aten = torch.ops.aten
_ROWS_IN_CACHE = 64


class _ConvNormReluPool(torch.autograd.Function):
    """Pool before normalising: with s = sign(gamma), pool(relu(gamma y' + beta)) = relu(|gamma| pool(s y)' + beta).

    The signs go into the weights, so that normalisation and ReLU, and their backward passes, work on the pooled map.
    With gz the gradient at the normalised map, n its entries a channel, and y' = (y - mean) / sigma,
        gy = (|gamma| / sigma) (gz - mean gz - y' mean(gz y')),
    and as gz is zero but at the maxima, gy is an affine map of y, computed in place, plus what is scattered to them.
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
        mean, var = torch.batch_norm_update_stats(y, None, None, 0.0)
        pooled, indices = (y, None) if pool is None else aten.max_pool2d_with_indices(y, *pool)
        h = F.batch_norm(pooled, mean, var, gamma.abs(), beta, training=False, eps=eps).relu_()
        ctx.save_for_backward(x, weight, gamma, sign, mean, var, h, None if pool is None else pooled, indices)
        ctx.y, ctx.eps, ctx.convolution = y, eps, convolution
        true_mean = mean * sign if bias is None else torch.addcmul(bias, mean, sign)
        ctx.has_bias = bias is not None
        size = y.numel() // y.shape[1]
        unbiased_var = var * (size / (size - 1))
        ctx.mark_non_differentiable(true_mean, unbiased_var)
        return h, true_mean, unbiased_var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, sign, mean, var, h, pooled, indices = ctx.saved_tensors
        # It becomes its own gradient below, so a second backward pass has to compute it again.
        y, ctx.y = ctx.y, None
        if y is None:
            y = signed_convolution(x, weight, sign, ctx.convolution)
        inverse_sigma = (var + ctx.eps).rsqrt()
        scale = gamma.abs() * inverse_sigma
        grad = aten.threshold_backward(grad_h, h, 0)
        normalised = y if pooled is None else pooled
        # Statistics twice, and a gain: without training a CPU reads the running ones, a GPU the saved ones, and a GPU
        # leaves out the gradient of a gain that it is not given. No result depends on the gain.
        _, grad_gamma, grad_beta = aten.native_batch_norm_backward(
            grad, normalised, gamma, mean, var, mean, inverse_sigma, False, ctx.eps, [False, True, True]
        )
        size = y.numel() // y.shape[1]
        slope = -scale * inverse_sigma * grad_gamma / size
        offset = -scale * grad_beta / size - slope * mean
        torch.addcmul(_by_channel(offset), y, _by_channel(slope), out=y)
        if indices is None:
            y.addcmul_(grad, _by_channel(scale))
        else:
            grad.mul_(_by_channel(scale))
            _scatter_add(y, indices, grad)
        grad_x, grad_weight = convolution_gradients(y, x, weight, sign, ctx.convolution, ctx.needs_input_grad[:2])
        grad_bias = torch.zeros_like(grad_beta) if ctx.has_bias else None  # the normalisation takes a bias away again
        return grad_x, grad_weight, grad_bias, grad_gamma * sign, grad_beta, None, None, None


def conv_norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    *,
    eps: float,
    convolution: Convolution,
    pool: MaxPool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute pool(relu(batch_norm(conv(x)))) with the batch's own statistics.

    Args:
        x: Shape (N, C_in, H, W). On a CPU it may be of half precision beside parameters of single precision, if the
            windows of the pooling do not overlap.
        weight: Of the convolution. Shape (C, C_in / groups, kh, kw).
        bias: Of the convolution. Shape (C,). The normalisation takes it away again: its gradient is zero.
        gamma: Gain of the normalisation. Shape (C,).
        beta: Bias of the normalisation. Shape (C,).
        eps: Added to the variance.
        convolution: How the convolution moves.
        pool: How the pooling moves; None for no pooling.

    Returns:
        The output h, and the mean and unbiased variance of each channel of the convolution, which have no gradient.

    Cost: Keeps x, the convolution's output, h and, with pooling, the pooled map and its indices. The gradient of the
        convolution's output takes its place; a second backward pass computes that again.

    Note: Where gamma is exactly 0 all positions of a pooling window tie, and the gradient of gamma may belong to
        another of them than in the separate layers.
    """
    arguments = x, weight, bias, gamma, beta, eps, convolution, pool
    if x.dtype != gamma.dtype:
        return conv_norm_relu_pool_in_half(*arguments)
    outputs: tuple[Tensor, Tensor, Tensor] = _ConvNormReluPool.apply(*arguments)
    return outputs


class _NormLinear(torch.autograd.Function):
    """Find the gradients of a layer norm's gain and bias without the gradient of what lies between.

    With x' = (x - mean) / sigma, out = (gamma x' + beta) W^T + b and M = G^T x' for G = d loss / d out:
        dW = M diag(gamma) + (sum_n G_n) beta^T,  dgamma_j = sum_o W_oj M_oj,  dbeta = W^T sum_n G_n.
    One matrix product in place of two.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        normalised = F.layer_norm(x, gamma.shape, eps=eps)
        ctx.save_for_backward(normalised, gamma, beta, weight)
        ctx.has_bias = bias is not None
        return F.linear(torch.addcmul(beta, normalised, gamma), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normalised, gamma, beta, weight = ctx.saved_tensors
        product = grad.T @ normalised
        grad_sum = grad.sum(0)
        grad_gamma = torch.zeros_like(gamma)
        for rows in zip(product.split(_ROWS_IN_CACHE), weight.split(_ROWS_IN_CACHE), strict=True):
            grad_gamma += torch.mul(*rows).sum(0)
        grad_weight = product.mul_(gamma).addr_(grad_sum, beta)
        return None, grad_gamma, grad_sum @ weight, grad_weight, grad_sum if ctx.has_bias else None, None


def norm_linear(
    x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """Compute linear(layer_norm(x)) for an input that needs no gradient.

    Args:
        x: Shape (N, D).
        gamma: Gain of the normalisation. Shape (D,).
        beta: Bias of the normalisation. Shape (D,).
        weight: Of the linear layer. Shape (O, D).
        bias: Of the linear layer. Shape (O,).
        eps: Added to the variance.

    Shape: (N, O).

    Cost: Two matrix products for a forward and a backward pass, where the separate layers take three.

    Raises:
        ValueError: `x` needs a gradient.
    """
    if x.requires_grad:
        raise ValueError("x: its gradient is not computed here; use torch.nn.functional.layer_norm and linear")
    out: Tensor = _NormLinear.apply(x, gamma, beta, weight, bias, eps)
    return out


def _by_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _scatter_add(maps: Tensor, indices: Tensor, values: Tensor) -> None:
    """Add values to maps (N, C, H, W), in place, at indices of the H W positions, moving through memory in order."""
    rows, at, added = in_memory_order(maps, indices, values)
    rows.scatter_add_(1, at, added)
