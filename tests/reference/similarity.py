"""Similarity matching of Nokland and Eidnes (ICML 2019), alone, with prediction, and without backprop in the heads.

h is the activation that the loss is taken on, before a closing pool and dropout in the published form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .layers import conv2d, linear
from .prediction import pool_kernel, pooled_features, pred_logits
from .scalars import dot, mean, total

NORM_FLOOR = 1e-8


def onehot(y: Tensor, num_classes: int) -> Tensor:
    """(N,) -> (N, Z)."""
    rows = torch.zeros(y.shape[0], num_classes, dtype=torch.float64)
    for n in range(y.shape[0]):
        rows[n, int(y[n])] = 1.0
    return rows


def similarity_rows(h: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C), the standard deviation over space, if C > 3 and H > 1; anything else is flattened.

    The standard deviation is the unbiased one; its factor cancels in the similarity. A constant map gives 0 with
    gradient 0.
    """
    if h.dim() != 4 or h.shape[1] <= 3 or h.shape[2] <= 1:
        return h.reshape(h.shape[0], -1)
    samples, channels, height, width = h.shape
    rows = []
    for n in range(samples):
        row = []
        for c in range(channels):
            values = [h[n, c, i, j] for i in range(height) for j in range(width)]
            centre = mean(values)
            variance = total([(value - centre) ** 2 for value in values]) / (len(values) - 1)
            row.append(torch.sqrt(variance) if variance.item() > 0 else 0 * variance)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def similarity_matrix(rows: Tensor) -> Tensor:
    """Adjusted cosine similarity of every two rows of (N, D): (N, N), in [-1, 1].

    A row's own mean over D is subtracted, then it is divided by max(its norm, 1e-8).
    """
    samples, entries = rows.shape
    normalised = []
    for n in range(samples):
        row = [rows[n, d] for d in range(entries)]
        centre = mean(row)
        row = [value - centre for value in row]
        square = dot(row, row)
        norm = torch.sqrt(square) if square.item() > NORM_FLOOR**2 else square.new_tensor(NORM_FLOOR)
        normalised.append([value / norm for value in row])
    similarities = [torch.stack([dot(normalised[i], normalised[j]) for j in range(samples)]) for i in range(samples)]
    return torch.stack(similarities).clamp(-1.0, 1.0)


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Average over all N x N entries."""
    rows, columns = a.shape
    return mean([(a[i, j] - b[i, j]) ** 2 for i in range(rows) for j in range(columns)])


def project(h: Tensor, weight: Tensor) -> Tensor:
    """Apply g, without bias: a 3x3 convolution with padding 1 for weight (C', C, 3, 3), else a linear map (H', H)."""
    return linear(h, weight) if weight.dim() == 2 else conv2d(h, weight, padding=1)


def sim_loss(h: Tensor, y: Tensor, num_classes: int, weight: Tensor) -> Tensor:
    """Mean squared error between S(g(h)) and S(onehot(y)); `weight` is that of g."""
    target = similarity_matrix(onehot(y, num_classes)).detach()
    return mean_squared_error(similarity_matrix(similarity_rows(project(h, weight))), target)


def pred_loss(h: Tensor, y: Tensor, weight: Tensor, bias: Tensor, budget: int) -> Tensor:
    """Cross-entropy of a linear layer on the pooled features."""
    return cross_entropy(pred_logits(h, weight, bias, budget), y)


def predsim_loss(
    h: Tensor,
    y: Tensor,
    pred_weight: Tensor,
    pred_bias: Tensor,
    sim_weight: Tensor,
    *,
    budget: int,
    beta: float = 0.99,
) -> Tensor:
    """(1 - beta) pred + beta sim."""
    pred = pred_loss(h, y, pred_weight, pred_bias, budget)
    return (1 - beta) * pred + beta * sim_loss(h, y, pred_weight.shape[0], sim_weight)


def predsim_output_loss(logits: Tensor, y: Tensor, beta: float = 0.99) -> Tensor:
    """(1 - beta) cross-entropy: how the official code scales the network's own output in predsim runs."""
    return (1 - beta) * cross_entropy(logits, y)


# The forms without backprop in the heads ("bpf").


def pooled_map(h: Tensor, budget: int) -> Tensor:
    """(N, C, H, W) -> (N, C, h, w) with C h w <= budget; a flat (N, D) is returned as it is."""
    if h.dim() == 2:
        return h
    samples, channels, height, width = h.shape
    kh, kw = pool_kernel(channels, height, width, budget)
    return pooled_features(h, budget).reshape(samples, channels, math.ceil(height / kh), math.ceil(width / kw))


def projected_labels(y: Tensor, projection: Tensor) -> Tensor:
    """P onehot(y), (N, K), from the fixed matrix P (K, Z): the columns of P."""
    return torch.stack([projection[:, int(y[n])] for n in range(y.shape[0])]).detach()


def sim_bpf_loss(h: Tensor, y: Tensor, projection: Tensor, *, budget: int) -> Tensor:
    """Mean squared error between S(pooled h) and S(P y); there is no g, and the rows are those of `similarity_rows`."""
    target = similarity_matrix(projected_labels(y, projection)).detach()
    return mean_squared_error(similarity_matrix(similarity_rows(pooled_map(h, budget))), target)


def feedback_linear(features: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> Tensor:
    """W x + b whose gradient in x is that of B x: (N, P) -> (N, K), with W and B of (K, P)."""
    samples, inputs = features.shape
    rows = []
    for n in range(samples):
        x = [features[n, p] for p in range(inputs)]
        fixed = [value.detach() for value in x]
        row = []
        for k in range(weight.shape[0]):
            value = dot([weight[k, p] for p in range(inputs)], fixed)
            path = dot([feedback[k, p].detach() for p in range(inputs)], x)
            value = value + path - path.detach()
            row.append(value if bias is None else value + bias[k])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def binary_cross_entropy_with_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Average of -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) over all entries."""
    losses = []
    for x, t in zip(logits.reshape(-1), target.reshape(-1), strict=True):
        softplus = torch.log1p(torch.exp(-x.abs())) + (x if x.item() > 0 else 0 * x)
        losses.append(softplus - t * x)
    return mean(losses)


def pred_bpf_loss(
    h: Tensor,
    y: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    feedback: Tensor,
    *,
    budget: int,
) -> Tensor:
    """Binary cross-entropy of the decoder's K outputs against the bits 1[P y > 0], with feedback alignment.

    `weight` and `bias` are the decoder's, and get their true gradient; h gets the gradient of a decoder whose weight
    is `feedback`.
    """
    bits = (projected_labels(y, projection) > 0).double()
    logits = feedback_linear(pooled_features(h, budget), weight, bias, feedback)
    return binary_cross_entropy_with_logits(logits, bits)


def predsim_bpf_loss(
    h: Tensor,
    y: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    feedback: Tensor,
    *,
    budget: int,
    beta: float = 0.01,
) -> Tensor:
    """(1 - beta) pred-bpf + beta sim-bpf."""
    pred = pred_bpf_loss(h, y, projection, weight, bias, feedback, budget=budget)
    return (1 - beta) * pred + beta * sim_bpf_loss(h, y, projection, budget=budget)
