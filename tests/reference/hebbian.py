"""SoftHebb (soft winner-take-all Hebbian learning) and forward gradients (a slope times its direction).

Perturbations are arguments. A Hebbian change is what is ADDED to the weight; an optimiser that descends takes its
negative as the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .scalars import dot, logsumexp, matrix_vector, mean, total
from .training import Block, Groups, _gradients, _leaves

LocalLoss = Callable[[int, Tensor, Tensor], Tensor]
"""(block index, block output, y) -> scalar loss."""


# ---------------------------------------------------------------- SoftHebb


def _vector(x: Tensor) -> list[Tensor]:
    flat = x.reshape(-1)
    return [flat[d] for d in range(flat.shape[0])]


def winner_take_all(u: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """softmax(u / t), with the sign turned for all but the winner: the largest u, the first one on ties."""
    scaled = [value / temperature for value in u]
    normaliser = logsumexp(scaled)
    winner = max(range(len(u)), key=lambda k: (u[k].item(), -k))
    return [(1 if k == winner else -1) * torch.exp(scaled[k] - normaliser) for k in range(len(u))]


def _change(vectors: list[list[Tensor]], weight: Tensor, temperature: float, reduction: str) -> Tensor:
    neurons, inputs = weight.shape
    rows = [[weight[k, d] for d in range(inputs)] for k in range(neurons)]
    sums = torch.zeros(neurons, inputs, dtype=torch.float64)
    for x in vectors:
        u = matrix_vector(weight, x)
        y = winner_take_all(u, temperature)
        for k in range(neurons):
            for d in range(inputs):
                sums[k, d] += (y[k] * (x[d] - u[k] * rows[k][d])).detach()
    return sums / len(vectors) if reduction == "mean" else sums


def _normalised(change: Tensor) -> Tensor:
    """Divide by the largest absolute entry of the whole matrix."""
    peak = max(abs(value) for value in change.reshape(-1).tolist())
    return change / peak if peak > 0 else change


def soft_hebb_linear(
    x: Tensor,
    weight: Tensor,
    *,
    temperature: float = 1.0,
    eta: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    normalise: bool = False,
) -> Tensor:
    """Delta w_k = eta y_k (x - u_k w_k) with u = W x, averaged (or summed) over the samples of x (N, D).

    With `normalise` the change is divided by its largest absolute entry before eta.
    """
    change = _change([_vector(x[n]) for n in range(x.shape[0])], weight.detach(), temperature, reduction)
    return eta * (_normalised(change) if normalise else change)


def patches(x: Tensor, kernel: int, stride: int = 1, padding: int = 0) -> list[list[Tensor]]:
    """List the flattened (C, k, k) windows of (N, C, H, W), sample by sample and row by row; zeros around."""
    samples, channels, height, width = x.shape
    zero = torch.zeros((), dtype=torch.float64)
    result = []
    for n in range(samples):
        for top in range(-padding, height + padding - kernel + 1, stride):
            for left in range(-padding, width + padding - kernel + 1, stride):
                window = []
                for c in range(channels):
                    for i in range(top, top + kernel):
                        for j in range(left, left + kernel):
                            inside = 0 <= i < height and 0 <= j < width
                            window.append(x[n, c, i, j] if inside else zero)
                result.append(window)
    return result


def soft_hebb_conv(
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    temperature: float = 1.0,
    eta: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    normalise: bool = False,
) -> Tensor:
    """As for a linear layer, with every window of every sample as an x and the channels as neurons.

    weight is (C', C, k, k); the mean is over samples and positions.
    """
    neurons, kernel = weight.shape[0], weight.shape[-1]
    flat = weight.detach().reshape(neurons, -1)
    change = _change(patches(x, kernel, stride, padding), flat, temperature, reduction)
    return eta * (_normalised(change) if normalise else change).reshape(weight.shape)


def adaptive_rates(weight: Tensor, eta: float, power: float = 0.5, floor: float = 0.0) -> Tensor:
    """(neurons): eta (| ||w_k|| - 1 | + floor)^power, which falls as a neuron's norm nears 1."""
    rates = []
    for k in range(weight.shape[0]):
        row = _vector(weight[k])
        rates.append(eta * ((torch.sqrt(dot(row, row)) - 1).abs() + floor) ** power)
    return torch.stack(rates)


def triangle(u: Tensor, power: float = 1.0) -> Tensor:
    """max(u_k - mean over channels of u, 0)^p at every position; channels stand on axis 1 of (N, C, ...)."""
    samples, channels = u.shape[:2]
    flat = u.reshape(samples, channels, -1)
    rows = []
    for n in range(samples):
        columns = []
        for position in range(flat.shape[2]):
            values = [flat[n, c, position] for c in range(channels)]
            average = mean(values)
            columns.append(torch.stack([(value - average).clamp(min=0) ** power for value in values]))
        rows.append(torch.stack(columns, dim=1))
    return torch.stack(rows).reshape(u.shape)


# ---------------------------------------------------------------- forward gradients


class ForwardGradient(NamedTuple):
    """losses[i] is None for a block without a loss of its own; `gradients` are the estimates."""

    losses: list[Tensor | None]
    gradients: Groups


def directional_derivative(gradients: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Sum grad . v over all entries of all tensors."""
    return total([dot(_vector(g), _vector(v)) for g, v in zip(gradients, directions, strict=True)])


def weight_estimate(loss: Tensor, theta: list[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
    """(grad L . v) v with one number grad L . v for all the tensors given."""
    slope = directional_derivative(_gradients(loss, theta), directions)
    return [(slope * v).detach() for v in directions]


def activity_estimate(gradient: Tensor, direction: Tensor) -> Tensor:
    """(g_n . v_n) v_n for every sample n by itself: one number a sample, over all its entries."""
    rows = []
    for n in range(gradient.shape[0]):
        rows.append(dot(_vector(gradient[n]), _vector(direction[n])) * direction[n])
    return torch.stack(rows).detach()


def _pull_back(h: Tensor, delta: Tensor, theta: list[Tensor]) -> list[Tensor]:
    return _gradients(dot(_vector(h), _vector(delta)), theta)


def local_weight_step(
    blocks: list[Block], params: Groups, directions: Groups, x: Tensor, y: Tensor, loss_fn: LocalLoss
) -> ForwardGradient:
    """Each block by its own loss, perturbed in its own parameters; inputs are detached."""
    losses: list[Tensor | None] = []
    gradients = []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        loss = loss_fn(i, h, y)
        losses.append(loss.detach())
        gradients.append(weight_estimate(loss, theta, directions[i]))
        x = h
    return ForwardGradient(losses, gradients)


def local_activity_step(
    blocks: list[Block], params: Groups, directions: Sequence[Tensor], x: Tensor, y: Tensor, loss_fn: LocalLoss
) -> ForwardGradient:
    """Each block by its own loss, perturbed at its output; directions[i] has h_i's shape.

    The estimate at h_i is pulled back to the block's parameters exactly.
    """
    losses: list[Tensor | None] = []
    gradients = []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        [leaf] = _leaves([h])
        loss = loss_fn(i, leaf, y)
        [at_output] = _gradients(loss, [leaf])
        losses.append(loss.detach())
        gradients.append(_pull_back(h, activity_estimate(at_output, directions[i]), theta))
        x = h
    return ForwardGradient(losses, gradients)


def global_weight_step(
    blocks: list[Block], params: Groups, directions: Groups, x: Tensor, y: Tensor
) -> ForwardGradient:
    """The network's cross-entropy, with all parameters perturbed at once: one number for the whole network."""
    leaves = [_leaves(group) for group in params]
    h = x
    for i in range(len(blocks)):
        h = blocks[i](h, leaves[i])
    loss = cross_entropy(h, y)
    flat = [theta for group in leaves for theta in group]
    estimates = iter(weight_estimate(loss, flat, [v for group in directions for v in group]))
    losses: list[Tensor | None] = [None] * (len(blocks) - 1)
    return ForwardGradient([*losses, loss.detach()], [[next(estimates) for _ in group] for group in params])


def global_activity_step(
    blocks: list[Block],
    params: Groups,
    directions: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    together: bool = True,
) -> ForwardGradient:
    """The network's cross-entropy, perturbed at the outputs of all blocks.

    In one forward-mode pass (`together`) sample n gives the one number sum_l g_{l,n} . v_{l,n}, and every block's
    estimate is that number times its own v_{l,n}. Otherwise each block is perturbed in a pass of its own.
    """
    leaves = [_leaves(group) for group in params]
    outputs = []
    h = x
    for i in range(len(blocks)):
        h = blocks[i](h, leaves[i])
        outputs.append(h)
    loss = cross_entropy(h, y)
    at_outputs = list(torch.autograd.grad(loss, outputs, retain_graph=True))
    gradients = []
    x = x.detach()
    for i in range(len(blocks)):
        if together:
            rows = []
            for n in range(x.shape[0]):
                slope = directional_derivative([g[n] for g in at_outputs], [v[n] for v in directions])
                rows.append(slope * directions[i][n])
            estimate = torch.stack(rows).detach()
        else:
            estimate = activity_estimate(at_outputs[i], directions[i])
        theta = _leaves(params[i])
        gradients.append(_pull_back(blocks[i](x, theta), estimate, theta))
        x = outputs[i].detach()
    losses: list[Tensor | None] = [None] * (len(blocks) - 1)
    return ForwardGradient([*losses, loss.detach()], gradients)
