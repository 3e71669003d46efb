"""Greedy and decoupled learning: auxiliary heads, easier and self-supervised targets, and the steps of the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy, cross_entropy_gradient
from .layers import ConvLayer, LinearLayer, adaptive_average_pool, apply_convs, apply_linears, batch_norm
from .scalars import logsumexp, mean, total
from .training import Block, Groups, Step, backprop_step

LocalLoss = Callable[[Tensor, list[Tensor], Tensor], Tensor]
"""Scores (block output, the head's parameters, y)."""
Head = Callable[[Tensor, list[Tensor]], Tensor]
"""Logits (N, Z) of (block output, the head's parameters)."""


# Auxiliary heads, (N, C, H, W) -> (N, Z). The networks of convolutions are given layer by layer.


def conv_head(h: Tensor, convs: Sequence[ConvLayer], classifier: LinearLayer) -> Tensor:
    """Belilovsky's head of depth k: k - 1 convolutions with ReLU, average pooling to 2x2, flatten, linear.

    A flat h meets the linear layer alone.
    """
    if h.dim() == 2:
        return apply_linears(h, [classifier])
    pooled = adaptive_average_pool(apply_convs(h, convs), 2, 2)
    return apply_linears(pooled.reshape(h.shape[0], -1), [classifier])


def mlp_head(h: Tensor, linears: Sequence[LinearLayer]) -> Tensor:
    """Pool to ceil(s / 4), then to 2x2, flatten; three hidden linear layers with normalisation and ReLU, one linear."""
    if h.dim() == 4:
        h = adaptive_average_pool(h, math.ceil(h.shape[2] / 4), math.ceil(h.shape[3] / 4))
        h = adaptive_average_pool(h, 2, 2).reshape(h.shape[0], -1)
    return apply_linears(h, linears)


def mlp_sr_head(h: Tensor, convs: Sequence[ConvLayer], linears: Sequence[LinearLayer]) -> Tensor:
    """Pool to ceil(s / 4); three 1x1 convolutions with normalisation and ReLU; pool to 2x2; then as `mlp_head`."""
    h = adaptive_average_pool(h, math.ceil(h.shape[2] / 4), math.ceil(h.shape[3] / 4))
    pooled = adaptive_average_pool(apply_convs(h, convs), 2, 2)
    return apply_linears(pooled.reshape(h.shape[0], -1), linears)


class Norm(NamedTuple):
    """Scale and shift of a batch normalisation."""

    gamma: Tensor
    beta: Tensor


def cnn_head(h: Tensor, convs: Sequence[ConvLayer], norm: Norm, classifier: LinearLayer) -> Tensor:
    """Two 3x3 convolutions with normalisation and ReLU; pool to 2x2; normalise every channel; flatten; linear."""
    pooled = batch_norm(adaptive_average_pool(apply_convs(h, convs), 2, 2), norm.gamma, norm.beta)
    return apply_linears(pooled.reshape(h.shape[0], -1), [classifier])


# Image targets


def roll(image: Tensor, shift: int) -> Tensor:
    """Move (N, C, H, W) down and to the right by `shift` pixels; what leaves comes in at the other side."""
    rolled = torch.empty_like(image)
    height, width = image.shape[2:]
    for i in range(height):
        for j in range(width):
            rolled[:, :, (i + shift) % height, (j + shift) % width] = image[:, :, i, j]
    return rolled


def shifts(blocks: int, first: int = 5, last: int = 16) -> list[int]:
    """Shifts in a line from `first` at the first block to `last` at the last, cut to whole pixels."""
    if blocks == 1:
        return [first]
    return [first + (last - first) * i // (blocks - 1) for i in range(blocks)]


def image_loss(reconstruction: Tensor, image: Tensor, shift: int = 0) -> Tensor:
    """Average absolute difference of the reconstruction and the image, rolled by `shift`."""
    target = roll(image, shift)
    return mean([(a - b).abs() for a, b in zip(reconstruction.reshape(-1), target.reshape(-1), strict=True)])


def label_and_image_loss(label: Tensor, image: Tensor, weights: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """w_pred CE + w_ssl L1."""
    return weights[0] * label + weights[1] * image


def rotate(image: Tensor, turns: Tensor) -> Tensor:
    """Turn every square image of (N, C, S, S) to the left by its own number of quarters; turns is (N,)."""
    rotated = torch.empty_like(image)
    side = image.shape[2]
    for n in range(image.shape[0]):
        current = image[n]
        for _ in range(int(turns[n]) % 4):
            turned = torch.empty_like(current)
            for i in range(side):
                for j in range(side):
                    turned[:, i, j] = current[:, j, side - 1 - i]
            current = turned
        rotated[n] = current
    return rotated


def rotation_loss(logits: Tensor, turns: Tensor) -> Tensor:
    """Cross-entropy of four outputs that say how far the image was turned."""
    return cross_entropy(logits, turns)


# Easier targets


def coarse_labels(y: Tensor, groups: int, num_classes: int) -> Tensor:
    """Put consecutive classes into groups of nearly one size: class z is in group floor(z G / Z)."""
    return torch.tensor([int(y[n]) * groups // num_classes for n in range(y.shape[0])])


def group_counts(blocks: int, num_classes: int, first: int = 2) -> list[int]:
    """Numbers of groups in a line from `first` at the first block to Z at the last, cut to whole groups."""
    if blocks == 1:
        return [first]
    return [first + (num_classes - first) * i // (blocks - 1) for i in range(blocks)]


def coarse_loss(group_logits: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Cross-entropy of one output a group against the sample's group."""
    return cross_entropy(group_logits, coarse_labels(y, group_logits.shape[1], num_classes))


def coarse_loss_of_classes(logits: Tensor, y: Tensor, groups: int) -> Tensor:
    """Average -log sum_{z in the sample's group} softmax(logits)[z], for a head with an output for every class."""
    samples, classes = logits.shape
    group_of = coarse_labels(torch.arange(classes), groups, classes)
    losses = []
    for n in range(samples):
        row = [logits[n, z] for z in range(classes)]
        own = [row[z] for z in range(classes) if int(group_of[z]) == int(group_of[int(y[n])])]
        losses.append(logsumexp(row) - logsumexp(own))
    return mean(losses)


# Predictions of all layers together


def layer_weights(layers: int) -> list[float]:
    """2^l for l = 0 .. L - 1, divided by their sum."""
    return [2.0**layer / (2.0**layers - 1) for layer in range(layers)]


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Average the layers' softmax outputs by `layer_weights`: (N, Z)."""
    samples, classes = logits[0].shape
    weights = layer_weights(len(logits))
    rows = []
    for n in range(samples):
        normalisers = [logsumexp([layer[n, z] for z in range(classes)]) for layer in logits]
        row = []
        for z in range(classes):
            probabilities = [torch.exp(logits[i][n, z] - normalisers[i]) for i in range(len(logits))]
            row.append(total([weights[i] * probabilities[i] for i in range(len(logits))]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


# Steps


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def gradients_of(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs)) if inputs else []


def descend(tensors: Sequence[Tensor], gradients: Sequence[Tensor], lr: float) -> list[Tensor]:
    return [(t - lr * g).detach() for t, g in zip(tensors, gradients, strict=True)]


def decoupled_step(
    blocks: list[Block],
    params: Groups,
    heads: Groups,
    losses_of: Sequence[LocalLoss],
    x: Tensor,
    y: Tensor,
    lr: float,
    trained: Sequence[int] | None = None,
) -> Step:
    """Train hidden block i and its head by losses_of[i], the last block by cross-entropy, all on detached inputs.

    Only the blocks in `trained` are, if it is given: one block of the layerwise rule, or the last block over frozen
    ones. The others have no loss, empty gradients, and stay. `dictionary` returns the updated heads.
    """
    losses: list[Tensor | None] = []
    gradients, updated, new_heads = [], [], []
    for i in range(len(blocks)):
        theta = leaves_of(params[i])
        phi = leaves_of(heads[i]) if i < len(heads) else []
        h = blocks[i](x.detach(), theta)
        if trained is not None and i not in trained:
            losses.append(None)
            gradients.append([])
            updated.append(list(params[i]))
            new_heads.append(list(heads[i]) if i < len(heads) else [])
        else:
            loss = cross_entropy(h, y) if i == len(blocks) - 1 else losses_of[i](h, phi, y)
            both = gradients_of(loss, [*theta, *phi])
            losses.append(loss.detach())
            gradients.append(both[: len(theta)])
            updated.append(descend(theta, both[: len(theta)], lr))
            new_heads.append(descend(phi, both[len(theta) :], lr))
        x = h
    return Step(losses, gradients, updated, new_heads[: len(heads)])


def frozen_step(blocks: list[Block], params: Groups, x: Tensor, y: Tensor, lr: float) -> Step:
    """Train the last block alone, over random hidden blocks."""
    return decoupled_step(blocks, params, [], [], x, y, lr, trained=[len(blocks) - 1])


def last_block_step(block: Block, theta: list[Tensor], image: Tensor, y: Tensor, lr: float) -> Step:
    """Train a network that is one last block on the raw image."""
    return backprop_step([block], [theta], image, y, lr)


def mixed_hook_step(
    blocks: list[Block], params: Groups, heads: Groups, head: Head, x: Tensor, y: Tensor, lr: float, weight: float = 0.5
) -> Step:
    """dgl-mixed, hook form: the gradient at a hidden head's logits is (1 - w) g_local + w g_last.

    Both are (softmax - onehot) / N, of the head's own logits and of the network's. `losses` holds each block's own
    cross-entropy.
    """
    thetas, phis, logits = _logits_of_all(blocks, params, heads, head, x)
    last = cross_entropy_gradient(logits[-1], y)
    losses: list[Tensor | None] = []
    gradients, updated, new_heads = [], [], []
    for i in range(len(blocks)):
        own = cross_entropy_gradient(logits[i], y)
        mixed = last if i == len(blocks) - 1 else (1 - weight) * own + weight * last
        both = list(torch.autograd.grad(logits[i], [*thetas[i], *phis[i]], mixed))
        losses.append(cross_entropy(logits[i], y).detach())
        gradients.append(both[: len(thetas[i])])
        updated.append(descend(thetas[i], gradients[i], lr))
        new_heads.append(descend(phis[i], both[len(thetas[i]) :], lr))
    return Step(losses, gradients, updated, new_heads[:-1])


def mixed_loss_step(
    blocks: list[Block], params: Groups, heads: Groups, head: Head, x: Tensor, y: Tensor, lr: float, weight: float = 0.5
) -> Step:
    """dgl-mixed, single-loss form: L_last + (1 - w) sum_l L_l + w sum_l sum_n <g_last[n], logits_l[n]>.

    g_last = (softmax - onehot) / N holds the 1 / N of the batch average already, so that the dot products are summed
    over n and not averaged once more. `losses` holds the single loss at the last block.
    """
    thetas, phis, logits = _logits_of_all(blocks, params, heads, head, x)
    last = cross_entropy_gradient(logits[-1], y)
    terms = [cross_entropy(logits[-1], y)]
    for i in range(len(blocks) - 1):
        products = [last[n, z] * logits[i][n, z] for n in range(last.shape[0]) for z in range(last.shape[1])]
        terms.append((1 - weight) * cross_entropy(logits[i], y) + weight * total(products))
    loss = total(terms)
    every_gradient = iter(torch.autograd.grad(loss, [p for i in range(len(blocks)) for p in (*thetas[i], *phis[i])]))
    gradients, updated, new_heads = [], [], []
    for i in range(len(blocks)):
        gradients.append([next(every_gradient) for _ in thetas[i]])
        updated.append(descend(thetas[i], gradients[i], lr))
        new_heads.append(descend(phis[i], [next(every_gradient) for _ in phis[i]], lr))
    losses: list[Tensor | None] = [None] * (len(blocks) - 1)
    return Step([*losses, loss.detach()], gradients, updated, new_heads[:-1])


def _logits_of_all(
    blocks: list[Block], params: Groups, heads: Groups, head: Head, x: Tensor
) -> tuple[Groups, Groups, list[Tensor]]:
    thetas = [leaves_of(group) for group in params]
    phis = [*[leaves_of(group) for group in heads], []]
    logits = []
    for i in range(len(blocks)):
        h = blocks[i](x.detach(), thetas[i])
        logits.append(h if i == len(blocks) - 1 else head(h, phis[i]))
        x = h
    return thetas, phis, logits


def linear_head(h: Tensor, head: list[Tensor]) -> Tensor:
    """A `Head` of [weight, bias]: `conv_head` of depth 1."""
    return conv_head(h, [], LinearLayer(*head))
