"""Feedback alignment: layers whose error is sent back by other weights, and errors sent straight to a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.precision import full_precision, under_autocast

Initialisation = Literal["kaiming", "xavier"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, feedback: Tensor) -> Tensor:
    """Compute x W^T + b, whose backward pass sends the error on by other weights: grad_x = grad_h B.

    grad_W = grad_h^T x and grad_b = sum grad_h are the true ones; B gets no gradient.

    Args:
        x: Input. Shape (..., I), any number of leading axes.
        weight: W. Shape (O, I).
        bias: b. Shape (O,).
        feedback: B. Shape (O, I).

    Shape: (..., O).

    References: Lillicrap, Cownden, Tweed and Akerman, "Random synaptic feedback weights support error backpropagation
        for deep learning", Nature Communications 2016.
    """
    x, weight, bias, feedback = _in_autocast_dtype(x, weight, bias, feedback)
    with full_precision(x):
        out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, feedback)
    return out.view(*x.shape[:-1], -1)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    feedback: Tensor,
) -> Tensor:
    """Compute a convolution whose backward pass sends the error on by other weights: grad_x = conv^T(grad_h; B).

    The gradients of W and b are the true ones; B gets no gradient.

    Args:
        x: Input. Shape (N, I, ...) with one to three positional axes, or the same without N.
        weight: W. Shape (O, I / groups, ...).
        bias: b. Shape (O,).
        stride: As in `torch.nn.functional.conv2d`.
        padding: As there, "same" and "valid" too.
        dilation: As there.
        groups: As there.
        feedback: B. Shape of W.
    """
    num_axes = weight.dim() - 2
    stride, dilation = _per_axis(stride, num_axes), _per_axis(dilation, num_axes)
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(width % 2 for width in total):  # one more on the far side, as PyTorch does
            x = F.pad(x, [side for width in reversed(total) for side in (width // 2, width - width // 2)])
            total = [0] * num_axes
        padding = [width // 2 for width in total]
    widths = [0] * num_axes if isinstance(padding, str) else _per_axis(padding, num_axes)
    x, weight, bias, feedback = _in_autocast_dtype(x, weight, bias, feedback)
    batch = x if x.dim() == weight.dim() else x.unsqueeze(0)
    with full_precision(x):
        out: Tensor = _Convolution.apply(batch, weight, bias, feedback, stride, widths, dilation, groups)
    return out if batch is x else out.squeeze(0)


def initial_std(shape: Sequence[int], initialisation: Initialisation = "kaiming") -> float:
    """Return the standard deviation that weights of a shape (O, I, ...) start with.

    "kaiming": 1 / sqrt(3 fan_in), PyTorch's own; "xavier": sqrt(2 / (fan_in + fan_out)).
    """
    positions = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * positions, shape[0] * positions
    return math.sqrt(1 / (3 * fan_in) if initialisation == "kaiming" else 2 / (fan_in + fan_out))


def initial_magnitude(weight: Tensor, initialisation: Initialisation = "kaiming") -> Tensor:
    """Draw |M| on the host, with M distributed as `weight` is at its start: uniform, of `initial_std`."""
    drawn = torch.rand(weight.shape).to(weight.dtype)  # the same numbers in every precision
    return drawn * (math.sqrt(3) * initial_std(weight.shape, initialisation))


def alignment(weights: Sequence[Tensor], feedback: Sequence[Tensor]) -> dict[str, Tensor]:
    """Measure how far backward weights are from the forward weights, all layers of a block taken as one vector.

    alignment_degrees = arccos(<W, B> / (|W| |B|)): 0 is backpropagation, 90 what random weights start with.
    norm_ratio = |B| / |W|.

    Args:
        weights: W of each layer.
        feedback: B of each layer, of the same shapes.
    """
    pairs = [(w.detach().reshape(-1).float(), b.reshape(-1).float()) for w, b in zip(weights, feedback, strict=True)]
    product = torch.stack([w @ b for w, b in pairs]).sum()
    w_norm = torch.stack([w @ w for w, _ in pairs]).sum().sqrt()
    b_norm = torch.stack([b @ b for _, b in pairs]).sum().sqrt()
    tiny = torch.finfo(torch.float32).tiny
    cosine = (product / (w_norm * b_norm).clamp_min(tiny)).clamp(-1, 1)
    return {"alignment_degrees": cosine.arccos().rad2deg(), "norm_ratio": b_norm / w_norm.clamp_min(tiny)}


def softmax_error(logits: Tensor, target: Tensor) -> Tensor:
    """Return the error of the logits, e = softmax(logits) - onehot(y). Shape (N, Z)."""
    return logits.softmax(1) - F.one_hot(target, logits.shape[1])


def centred_sign(error: Tensor) -> Tensor:
    """Return sign(e) minus its mean over the classes. Shape (N, Z)."""
    sign = error.sign()
    return sign - sign.mean(1, keepdim=True)


def draw_projection(num_classes: int, shape: Sequence[int]) -> Tensor:
    """Draw B, which sends one number a class to a layer: uniform as by Kaiming, |B| <= sqrt(6 / units of the layer).

    Args:
        num_classes: Z.
        shape: The layer's activation, without the batch axis.

    Shape: (Z, *shape).
    """
    return torch.nn.init.kaiming_uniform_(torch.empty(num_classes, *shape))


def project(signal: Tensor, matrix: Tensor, like: Tensor) -> Tensor:
    """Send one signal a sample straight to a layer: delta_n = sum_z signal_{n,z} B_z, laid out in memory as `like`.

    Args:
        signal: Error, its sign, or one-hot target. Shape (N, Z).
        matrix: B. Shape (Z, ...).
        like: The layer's activation. Shape (N, ...).

    References: Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", NeurIPS 2016.
    """
    delta = signal.to(matrix.dtype) @ matrix.flatten(1)
    # In another layout than the activation's, every backward function behind it falls off its fast path (ADR 0004).
    return torch.empty_like(like).copy_(delta.view(len(signal), *matrix.shape[1:]))


def target_projection_loss(h: Tensor, target: Tensor, matrix: Tensor) -> Tensor:
    """Return L = (1/N) sum_n <h_n, B_{y_n}>, whose gradient in h is the projected target: delta_n = B_{y_n} / N.

    Args:
        h: The layer's activation. Shape (N, ...).
        target: Class indices. Shape (N,).
        matrix: B. Shape (Z, ...).

    References: Frenkel, Lefebvre and Bol, "Learning Without Feedback: Fixed Random Learning Signals Allow for
        Feedforward Training of Deep Neural Networks", Frontiers in Neuroscience 2021.
    """
    delta = torch.empty_like(h, requires_grad=False).copy_(matrix[target])
    return (h * delta).sum(dtype=torch.promote_types(h.dtype, torch.float32)) / len(h)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, feedback if needs_x else None)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, feedback = ctx.saved_tensors
        grad_x = None if feedback is None else grad @ feedback
        grad_weight = None if x is None else grad.t() @ x
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor, *geometry: Any) -> Tensor:
        stride, padding, dilation, groups = geometry
        ctx.geometry = (stride, padding, dilation, False, [0] * len(stride), groups)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, feedback)
        out: Tensor = torch.ops.aten.convolution(x, weight, bias, *ctx.geometry)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, feedback = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wanted = [needs_x, needs_weight, needs_bias and ctx.has_bias]
        bias_shape = [feedback.shape[0]] if ctx.has_bias else None
        # The gradient of the weights does not read them, so that B may stand in their place.
        found = torch.ops.aten.convolution_backward(grad, x, feedback, bias_shape, *ctx.geometry, wanted)
        return (*(g if want else None for g, want in zip(found, wanted, strict=True)), None, None, None, None, None)


def _per_axis(value: int | Sequence[int], num_axes: int) -> list[int]:
    return [value] * num_axes if isinstance(value, int) else list(value) * (num_axes // len(value))


def _in_autocast_dtype(
    x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    if not under_autocast(x) or x.dtype == torch.float64:
        return x, weight, bias, feedback
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), feedback.to(dtype)
