"""The layers that auxiliary networks are made of, entry by entry, as functions of explicit weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .scalars import mean, total

BATCH_NORM_EPS = 1e-5


class ConvLayer(NamedTuple):
    """A convolution, batch normalisation if `gamma` is given, and ReLU if `relu`.

    `weight` is (C', C, k, k), `bias`, `gamma` and `beta` are (C'). Padding None stands for (k - 1) / 2.
    """

    weight: Tensor
    bias: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    stride: int = 1
    padding: int | None = None
    relu: bool = True


class LinearLayer(NamedTuple):
    """A linear layer, batch normalisation if `gamma` is given, and ReLU if `relu`."""

    weight: Tensor
    bias: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    relu: bool = False


def relu(h: Tensor) -> Tensor:
    """Keep the positive entries; the gradient at 0 is 0."""
    return h * (h.detach() > 0).double()


def channel_vectors(h: Tensor) -> list[list[tuple[Tensor, ...]]]:
    """Cut (N, C, H, W) into vectors [n][i][j] of length C; cheaper than indices, whose gradients are as large as h."""
    return [[row.unbind() for row in image.unbind()] for image in h.movedim(1, -1).unbind()]


def linear(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, D) -> (N, D')."""
    unit_weights = weight.unbind()
    rows = []
    for sample in h.unbind():
        row = [(unit_weight * sample).sum() for unit_weight in unit_weights]
        rows.append(torch.stack(row if bias is None else [row[o] + bias[o] for o in range(len(row))]))
    return torch.stack(rows)


def conv2d(h: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """out[n, o, i, j] = b[o] + sum w[o, :, p, q] . h[n, :, i s + p - padding, j s + q - padding]."""
    samples, _, height, width = h.shape
    outputs, _, kh, kw = weight.shape
    rows, columns = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    pixels, taps = channel_vectors(h), channel_vectors(weight)
    values = []
    for n in range(samples):
        for o in range(outputs):
            for i in range(rows):
                for j in range(columns):
                    terms = [] if bias is None else [bias[o]]
                    for p in range(kh):
                        for q in range(kw):
                            a, b = i * stride + p - padding, j * stride + q - padding
                            if 0 <= a < height and 0 <= b < width:
                                terms.append((taps[o][p][q] * pixels[n][a][b]).sum())
                    values.append(total(terms))
    return torch.stack(values).reshape(samples, outputs, rows, columns)


def conv_transpose2d(
    h: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """Spread every h[n, c, i, j] over out[n, :, i s + p - padding, j s + q - padding]; weight is (C, C', k, k)."""
    samples, _, height, width = h.shape
    _, outputs, kh, kw = weight.shape
    rows, columns = (height - 1) * stride - 2 * padding + kh, (width - 1) * stride - 2 * padding + kw
    terms: dict[tuple[int, int, int, int], list[Tensor]] = {}
    for n in range(samples):
        for o in range(outputs):
            for i in range(height):
                for j in range(width):
                    for p in range(kh):
                        for q in range(kw):
                            place = (n, o, i * stride + p - padding, j * stride + q - padding)
                            terms.setdefault(place, []).append((weight[:, o, p, q] * h[n, :, i, j]).sum())
    values = []
    for n in range(samples):
        for o in range(outputs):
            for a in range(rows):
                for b in range(columns):
                    value = total(terms.get((n, o, a, b), []))
                    values.append(value if bias is None else value + bias[o])
    return torch.stack(values).reshape(samples, outputs, rows, columns)


def batch_norm(h: Tensor, gamma: Tensor, beta: Tensor, eps: float = BATCH_NORM_EPS) -> Tensor:
    """Standardise every channel (axis 1) by the batch's mean and biased variance: gamma x + beta."""
    channels = []
    for c in range(h.shape[1]):
        values = list(h[:, c].reshape(-1))
        centre = mean(values)
        variance = mean([(value - centre) ** 2 for value in values])
        normalised = [(value - centre) / torch.sqrt(variance + eps) for value in values]
        channels.append(torch.stack([gamma[c] * v + beta[c] for v in normalised]).reshape(h[:, c].shape))
    return torch.stack(channels, dim=1)


def adaptive_average_pool(h: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) -> (N, C, height, width): output i averages floor(i H / height) .. ceil((i + 1) H / height) - 1."""
    samples, channels, rows, columns = h.shape
    values = []
    for n in range(samples):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    window = [
                        h[n, c, a, b]
                        for a in range(i * rows // height, math.ceil((i + 1) * rows / height))
                        for b in range(j * columns // width, math.ceil((j + 1) * columns / width))
                    ]
                    values.append(mean(window))
    return torch.stack(values).reshape(samples, channels, height, width)


def bilinear(h: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) so that the corner pixels stay in the corners ("align corners")."""
    samples, channels, rows, columns = h.shape
    values = []
    for n in range(samples):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    a = i * (rows - 1) / (height - 1) if height > 1 else 0.0
                    b = j * (columns - 1) / (width - 1) if width > 1 else 0.0
                    top, left = min(int(a), rows - 1), min(int(b), columns - 1)
                    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                    upper = (1 - (b - left)) * h[n, c, top, left] + (b - left) * h[n, c, top, right]
                    lower = (1 - (b - left)) * h[n, c, bottom, left] + (b - left) * h[n, c, bottom, right]
                    values.append((1 - (a - top)) * upper + (a - top) * lower)
    return torch.stack(values).reshape(samples, channels, height, width)


def apply_convs(h: Tensor, layers: Sequence[ConvLayer]) -> Tensor:
    """Apply one `ConvLayer` after another."""
    for layer in layers:
        padding = (layer.weight.shape[-1] - 1) // 2 if layer.padding is None else layer.padding
        h = conv2d(h, layer.weight, layer.bias, layer.stride, padding)
        if layer.gamma is not None and layer.beta is not None:
            h = batch_norm(h, layer.gamma, layer.beta)
        h = relu(h) if layer.relu else h
    return h


def apply_linears(h: Tensor, layers: Sequence[LinearLayer]) -> Tensor:
    """Apply one `LinearLayer` after another."""
    for layer in layers:
        h = linear(h, layer.weight, layer.bias)
        if layer.gamma is not None and layer.beta is not None:
            h = batch_norm(h, layer.gamma, layer.beta)
        h = relu(h) if layer.relu else h
    return h
