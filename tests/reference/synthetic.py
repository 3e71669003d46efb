"""Synthetic gradients: DNI, cDNI and the fully unlocked form (Jaderberg et al. 2017).

Block l has a synthesiser M_l(h_l, c) that predicts the gradient of the network's loss at h_l; c is the one-hot
label (cDNI) or None. The last block gives the logits and is trained by cross-entropy. In the fully unlocked
form block l also has a predictor P_l(image) of its input. Both are functions of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .scalars import dot, matrix_vector, mean
from .training import Block, Groups, _gradients, _leaves

Synthesiser = Callable[[Tensor, Tensor | None, list[Tensor]], Tensor]
"""(h, one-hot label or None, parameters) -> a tensor of h's shape."""


class SyntheticStep(NamedTuple):
    """What one batch says, all from parameters as they were before it.

    Attributes:
        loss: Cross-entropy of the last block.
        gradients: By block.
        synthesis_losses: By hidden block: the synthesiser's squared error.
        synthesis_gradients: By hidden block.
        arriving: By hidden block: the gradient that the block above returned.
        input_losses: By block but the first: the input predictor's squared error; empty without predictors.
        input_gradients: By block but the first.
    """

    loss: Tensor
    gradients: Groups
    synthesis_losses: list[Tensor]
    synthesis_gradients: Groups
    arriving: list[Tensor]
    input_losses: list[Tensor]
    input_gradients: Groups


def one_hot(y: Tensor, classes: int) -> Tensor:
    rows = torch.zeros(y.shape[0], classes, dtype=torch.float64)
    for n in range(y.shape[0]):
        rows[n, int(y[n])] = 1.0
    return rows


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(1/N) sum_n sum_j (predicted - target)^2: summed over a sample's entries and averaged over the batch.

    Its gradient is (2 / N)(predicted - target).
    """
    samples = predicted.shape[0]
    a, b = predicted.reshape(samples, -1), target.detach().reshape(samples, -1)
    losses = []
    for n in range(samples):
        difference = [a[n, j] - b[n, j] for j in range(a.shape[1])]
        losses.append(dot(difference, difference))
    return mean(losses)


def mlp_synthesiser(h: Tensor, condition: Tensor | None, theta: list[Tensor]) -> Tensor:
    """W2 relu(W1 h + b1 + Wc c) + b2 on the flattened h, from [W1, b1, W2, b2] or [W1, b1, W2, b2, Wc].

    The label's linear map has no bias and joins before the nonlinearity.
    """
    w1, b1, w2, b2 = theta[:4]
    samples = h.shape[0]
    flat = h.reshape(samples, -1)
    rows = []
    for n in range(samples):
        hidden = matrix_vector(w1, [flat[n, d] for d in range(flat.shape[1])])
        hidden = [hidden[k] + b1[k] for k in range(len(hidden))]
        if condition is not None:
            added = matrix_vector(theta[4], [condition[n, z] for z in range(condition.shape[1])])
            hidden = [hidden[k] + added[k] for k in range(len(hidden))]
        output = matrix_vector(w2, [value.clamp(min=0) for value in hidden])
        rows.append(torch.stack([output[d] + b2[d] for d in range(len(output))]))
    return torch.stack(rows).reshape(h.shape)


def _synthesise_and_backpropagate(
    h: Tensor, theta: list[Tensor], synthetic: Tensor, inputs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Push the gradient `synthetic`, given at h, to the parameters and to the inputs."""
    a, b = h.reshape(-1), synthetic.detach().reshape(-1)
    pushed = dot([a[j] for j in range(a.shape[0])], [b[j] for j in range(b.shape[0])])
    gradients = _gradients(pushed, [*theta, *inputs])
    return gradients[: len(theta)], gradients[len(theta) :]


def synthetic_step(
    blocks: list[Block],
    params: Groups,
    synthesisers: Sequence[Synthesiser],
    synthesis_params: Groups,
    x: Tensor,
    y: Tensor,
    *,
    classes: int | None = None,
    scale: float = 1.0,
    loss_scale: float = 1.0,
    predictors: Sequence[Block] | None = None,
    predictor_params: Groups | None = None,
) -> SyntheticStep:
    """Train every hidden block by its own M_l, and M_l by the gradient that comes back from block l + 1.

    For hidden l: h_l = f_l(sg[h_{l-1}]), the block's gradient is the pull-back of M_l(sg[h_l], c) / scale, and M_l
    minimises loss_scale (1/N) ||M_l(sg[h_l], c) - scale sg[g_l]||^2, where g_l is the gradient that block l + 1
    gives at its input: of the pull-back of its own synthetic gradient, or of the cross-entropy for the last one.
    The gradients are those of the batch mean, about 1/N a sample; scale = N lets M_l speak of single samples.

    With `classes` the synthesisers are given the one-hot label. With `predictors`, block l > 0 computes on
    sg[P_l(x)] instead of h_{l-1}; P_l minimises (1/N) ||P_l(x) - sg[h_{l-1}]||^2 with the h_{l-1} that the block
    below computed in this step, from its own predicted input. g_{l-1} is then taken at the predicted input.
    """
    condition = None if classes is None else one_hot(y, classes)
    last = len(blocks) - 1
    image = x.detach()
    below = image
    gradients: Groups = []
    arriving: list[Tensor] = []
    outputs: list[Tensor] = []
    input_losses: list[Tensor] = []
    input_gradients: Groups = []
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        entered = below
        if predictors is not None and predictor_params is not None and i > 0:
            pi = _leaves(predictor_params[i - 1])
            predicted = predictors[i - 1](image, pi)
            input_loss = squared_error(predicted, below)
            input_losses.append(input_loss.detach())
            input_gradients.append(_gradients(input_loss, pi))
            entered = predicted
        [leaf] = _leaves([entered])
        h = blocks[i](leaf, theta)
        inputs = [leaf] if i > 0 else []
        if i < last:
            synthetic = synthesisers[i](h.detach(), condition, synthesis_params[i]).detach() / scale
            theta_gradients, returned = _synthesise_and_backpropagate(h, theta, synthetic, inputs)
        else:
            loss = cross_entropy(h, y)
            every = _gradients(loss, [*theta, *inputs])
            theta_gradients, returned = every[: len(theta)], every[len(theta) :]
        gradients.append(theta_gradients)
        arriving.extend(returned)
        outputs.append(h.detach())
        below = h.detach()

    synthesis_losses, synthesis_gradients = [], []
    for i in range(last):
        phi = _leaves(synthesis_params[i])
        error = loss_scale * squared_error(synthesisers[i](outputs[i], condition, phi), scale * arriving[i])
        synthesis_losses.append(error.detach())
        synthesis_gradients.append(_gradients(error, phi))
    return SyntheticStep(
        loss.detach(), gradients, synthesis_losses, synthesis_gradients, arriving, input_losses, input_gradients
    )
