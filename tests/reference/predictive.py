"""Predictive Forward-Forward (Ororbia and Mali): one step of the recurrent circuit and of the generative circuit.

The version that is written out here, where the description leaves a choice:

Representation, for layers l = 1 .. L, all at once from the states of step t - 1:
    a_l = W_l n(z_{l-1}) + V_l n(z_{l+1}) - R_l n(z_l)
    z_l(t) = alpha sg[z_l(t-1)] + (1 - alpha) (relu(a_l) + noise_l)
The gradient passes relu as if it were not there (straight through). n is division by a sample's Euclidean norm;
z_0 = x and z_{L+1} = 5 onehot(label) are not normalised.
R_l = relu(Lambda_l) within groups of contiguous units: other units inhibit, a unit excites itself (the diagonal has the
opposite sign). Everything on the right but [W_l, V_l, Lambda_l] is detached, so a loss trains its own layer alone.
Goodness is sum z^2 of the new state, and the sign is turned: positives make it small.

Generation: zhat_l = relu(G_{l+1} sg[n(z_{l+1} + noise_{l+1})]) for 0 < l < L, the same with a sigmoid for the pixels
zhat_0, and zhat_L = relu(G_{L+1} s) from a latent s. The loss of layer l is ||zhat_l - sg z_l||^2, summed over units
and averaged over the batch; s takes one gradient step of its own layer's loss, after the gradients have been taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .goodness import forward_forward_loss, goodness, normalised
from .scalars import dot, matrix_vector, mean
from .training import Groups, _gradients, _leaves

Pixels = Literal["sigmoid", "relu", "identity"]


class RepresentationStep(NamedTuple):
    """New states z_1 .. z_L, detached; with losses and gradients of [W, V, Lambda] by layer."""

    states: list[Tensor]
    losses: list[Tensor]
    gradients: Groups


class GenerativeStep(NamedTuple):
    """Losses by predicted layer 0 .. L, gradients of [G_1, .., G_{L+1}], predictions, and the new latent."""

    losses: list[Tensor]
    gradients: list[Tensor]
    predictions: list[Tensor]
    latent: Tensor


def straight_through_relu(a: Tensor) -> Tensor:
    """max(a, 0), with the derivative 1 everywhere."""
    return a + (a.detach().clamp(min=0) - a.detach())


def label_context(y: Tensor, classes: int, scale: float = 5.0) -> Tensor:
    context = torch.zeros(y.shape[0], classes, dtype=torch.float64)
    for n in range(y.shape[0]):
        context[n, int(y[n])] = scale
    return context


def lateral_matrix(weight: Tensor, group: int) -> Tensor:
    """Inhibition R (D, D): relu(Lambda_ij) for another unit of i's group, -relu(Lambda_ii), and 0 across groups."""
    size = weight.shape[0]
    rows = []
    for i in range(size):
        row = []
        for j in range(size):
            value = weight[i, j].clamp(min=0)
            row.append(-value if i == j else value if i // group == j // group else 0 * value)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _apply(matrix: Tensor, z: Tensor) -> Tensor:
    rows = [[z[n, d] for d in range(z.shape[1])] for n in range(z.shape[0])]
    return torch.stack([torch.stack(matrix_vector(matrix, row)) for row in rows])


def _next_state(
    theta: list[Tensor],
    below: Tensor,
    above: Tensor,
    own: Tensor,
    noise: Tensor,
    *,
    is_first: bool,
    is_top: bool,
    alpha: float,
    group: int,
) -> Tensor:
    w, v, lateral = theta
    below = below if is_first else normalised(below, "l2")
    above = above if is_top else normalised(above, "l2")
    a = _apply(w, below.detach()) + _apply(v, above.detach())
    a = a - _apply(lateral_matrix(lateral, group), normalised(own, "l2").detach())
    return alpha * own.detach() + (1 - alpha) * (straight_through_relu(a) + noise)


def bottom_up_states(params: Groups, x: Tensor) -> list[Tensor]:
    """First states: z_l = relu(W_l n(z_{l-1})) from the input upwards, without context, competition or noise."""
    states = []
    for i in range(len(params)):
        below = x if i == 0 else normalised(states[-1], "l2")
        states.append(_apply(params[i][0], below).clamp(min=0).detach())
    return states


def representation_step(
    params: Groups,
    states: Sequence[Tensor],
    x: Tensor,
    context: Tensor,
    noises: Sequence[Tensor],
    theta: float,
    *,
    alpha: float = 0.3,
    group: int = 10,
) -> RepresentationStep:
    """Move every layer one step; the first half of the batch is positive and the second half negative.

    Loss of layer l, averaged over the pairs: softplus(G_pos - theta) + softplus(theta - G_neg).
    """
    layers = len(params)
    half = x.shape[0] // 2
    new_states, losses, gradients = [], [], []
    for i in range(layers):
        leaves = _leaves(params[i])
        z = _next_state(
            leaves,
            x if i == 0 else states[i - 1],
            context if i == layers - 1 else states[i + 1],
            states[i],
            noises[i],
            is_first=i == 0,
            is_top=i == layers - 1,
            alpha=alpha,
            group=group,
        )
        g = goodness(z, "sum")
        loss = forward_forward_loss(-g[:half], -g[half:], -theta)
        new_states.append(z.detach())
        losses.append(loss.detach())
        gradients.append(_gradients(loss, leaves))
    return RepresentationStep(new_states, losses, gradients)


def generative_step(
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    x: Tensor,
    latent: Tensor,
    noises: Sequence[Tensor],
    *,
    latent_rate: float = 0.025,
    pixels: Pixels = "sigmoid",
) -> GenerativeStep:
    """Predict x, z_1, .., z_L from the layer above each; weights[l] is G_{l+1}, noises[l] belongs to z_{l+1}."""
    layers = len(states)
    targets = [x, *states]
    losses, gradients, predictions = [], [], []
    new_latent = latent
    for i in range(layers + 1):
        [weight] = _leaves([weights[i]])
        [s] = _leaves([latent])
        source = s if i == layers else normalised(states[i] + noises[i], "l2").detach()
        a = _apply(weight, source)
        if i > 0 or pixels == "relu":
            predicted = a.clamp(min=0)
        else:
            predicted = 1 / (1 + torch.exp(-a)) if pixels == "sigmoid" else a
        target = targets[i].detach()
        errors = []
        for n in range(target.shape[0]):
            difference = [predicted[n, d] - target[n, d] for d in range(target.shape[1])]
            errors.append(dot(difference, difference))
        loss = mean(errors)
        if i == layers:
            weight_gradient, latent_gradient = _gradients(loss, [weight, s])
            new_latent = (latent - latent_rate * latent_gradient).detach()
        else:
            [weight_gradient] = _gradients(loss, [weight])
        losses.append(loss.detach())
        gradients.append(weight_gradient)
        predictions.append(predicted.detach())
    return GenerativeStep(losses, gradients, predictions, new_latent)


def label_scores(
    params: Groups, x: Tensor, classes: int, *, steps: int = 12, alpha: float = 0.3, group: int = 10, scale: float = 5.0
) -> Tensor:
    """(N, Z): minus the goodness summed over layers and averaged over steps K/2 - 1 .. K/2 + 1, for every label.

    Steps count from 1; there is no noise, and the first states come from one bottom-up pass.
    """
    columns = []
    layers = len(params)
    for label in range(classes):
        context = label_context(torch.full((x.shape[0],), label), classes, scale)
        states = bottom_up_states(params, x)
        collected = []
        for step in range(1, steps // 2 + 2):
            states = [
                _next_state(
                    params[i],
                    x if i == 0 else states[i - 1],
                    context if i == layers - 1 else states[i + 1],
                    states[i],
                    torch.zeros_like(states[i]),
                    is_first=i == 0,
                    is_top=i == layers - 1,
                    alpha=alpha,
                    group=group,
                ).detach()
                for i in range(layers)
            ]
            if step >= steps // 2 - 1:
                collected.append(sum(goodness(z, "sum") for z in states))
        columns.append(-sum(collected) / len(collected))
    return torch.stack(columns, dim=1)
