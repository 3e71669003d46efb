"""Target propagation: targets for activities instead of gradients (Lee et al. 2015; Meulemans et al.; scalingDTP).

h_l = f_l(h_{l-1}) for blocks l = 0 .. L, with h_L the logits. g_l maps back: h_l to h_{l-1} for l = 1 .. L in a chain,
or h_L straight to h_l for l = 0 .. L - 1 in the direct form. All noise is an argument, already scaled by its sigma.
Losses sum over a sample's entries and average over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .scalars import dot, logsumexp, mean
from .training import Block, Groups, _gradients, _leaves

Rule = Literal["tp", "dtp", "direct-dtp"]


class TargetStep(NamedTuple):
    """What one batch says of the forward path: losses, gradients, outputs and targets by block.

    targets[-1] is the top target, also where the last block is trained by cross-entropy.
    """

    losses: list[Tensor]
    gradients: Groups
    outputs: list[Tensor]
    targets: list[Tensor]


def _rows(h: Tensor) -> list[list[Tensor]]:
    flat = h.reshape(h.shape[0], -1)
    return [[flat[n, j] for j in range(flat.shape[1])] for n in range(flat.shape[0])]


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """(1/N) sum_n ||a_n - b_n||^2."""
    left, right = _rows(a), _rows(b)
    losses = []
    for n in range(len(left)):
        difference = [left[n][j] - right[n][j] for j in range(len(left[n]))]
        losses.append(dot(difference, difference))
    return mean(losses)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """(1/N) sum_n <a_n, b_n>."""
    left, right = _rows(a), _rows(b)
    return mean([dot(left[n], right[n]) for n in range(len(left))])


# ---------------------------------------------------------------- targets


def top_target(logits: Tensor, y: Tensor, eta: float) -> Tensor:
    """t_L = h_L - eta (softmax(h_L) - onehot): a step along each sample's own loss, not divided by N."""
    samples, classes = logits.shape
    target = logits.detach().clone()
    for n in range(samples):
        normaliser = logsumexp([logits[n, z] for z in range(classes)]).detach()
        for z in range(classes):
            onehot = 1.0 if int(y[n]) == z else 0.0
            target[n, z] -= eta * (torch.exp(logits[n, z].detach() - normaliser) - onehot)
    return target


def label_target(y: Tensor, classes: int) -> Tensor:
    """t_L = onehot(y): the target taken from the label alone."""
    target = torch.zeros(y.shape[0], classes, dtype=torch.float64)
    for n in range(y.shape[0]):
        target[n, int(y[n])] = 1.0
    return target


def forward_outputs(blocks: list[Block], params: Groups, x: Tensor) -> list[Tensor]:
    outputs = []
    for i in range(len(blocks)):
        x = blocks[i](x, params[i]).detach()
        outputs.append(x)
    return outputs


def propagate_targets(
    outputs: Sequence[Tensor],
    top: Tensor,
    feedbacks: Sequence[Block],
    feedback_params: Groups,
    rule: Rule = "dtp",
) -> list[Tensor]:
    """Targets t_0 .. t_L from t_L, with L feedback nets.

    In a chain feedbacks[l - 1] is g_l: tp t_{l-1} = g_l(t_l); dtp t_{l-1} = h_{l-1} + g_l(t_l) - g_l(h_l).
    direct-dtp: feedbacks[l] maps from the top, t_l = h_l + g_l(t_L) - g_l(h_L).
    """
    last = len(outputs) - 1
    targets = [top.detach()] * len(outputs)
    for i in range(last - 1, -1, -1):
        g, phi = feedbacks[i], feedback_params[i]
        if rule == "tp":
            target = g(targets[i + 1], phi)
        elif rule == "dtp":
            target = outputs[i] + g(targets[i + 1], phi) - g(outputs[i + 1], phi)
        else:
            target = outputs[i] + g(targets[last], phi) - g(outputs[last], phi)
        targets[i] = target.detach()
    return targets


# ---------------------------------------------------------------- forward path


def forward_loss(h: Tensor, target: Tensor) -> Tensor:
    """1/2 ||h - sg t||^2, summed over units and averaged over the batch."""
    return squared_distance(h, target.detach()) / 2


def target_step(
    blocks: list[Block],
    params: Groups,
    feedbacks: Sequence[Block],
    feedback_params: Groups,
    x: Tensor,
    y: Tensor,
    *,
    eta: float,
    rule: Rule = "dtp",
    top: Tensor | None = None,
    last_by_target: bool = False,
) -> TargetStep:
    """Train every hidden block towards its target; the input of each is detached and nothing reaches g.

    The last block is trained by the cross-entropy of its logits, or with `last_by_target` by 1/2 ||h_L - t_L||^2 as
    the others are. The top target is `top` where given, otherwise a step of eta along each sample's loss.
    """
    outputs = forward_outputs(blocks, params, x)
    top = top_target(outputs[-1], y, eta) if top is None else top
    targets = propagate_targets(outputs, top, feedbacks, feedback_params, rule)
    losses, gradients = [], []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i]((x if i == 0 else outputs[i - 1]).detach(), theta)
        is_last = i == len(blocks) - 1
        loss = cross_entropy(h, y) if is_last and not last_by_target else forward_loss(h, targets[i])
        losses.append(loss.detach())
        gradients.append(_gradients(loss, theta))
    return TargetStep(losses, gradients, outputs, targets)


# ---------------------------------------------------------------- feedback path


def reconstruction_loss(
    forward: Block, theta: list[Tensor], feedback: Block, phi: list[Tensor], below: Tensor, noise: Tensor
) -> Tensor:
    """Vanilla: ||g(sg f(x + e)) - (x + e)||^2 with x the detached output below and e the noise."""
    noisy = below.detach() + noise
    return squared_distance(feedback(forward(noisy, theta).detach(), phi), noisy)


def difference_reconstruction_loss(
    forward: Block,
    theta: list[Tensor],
    feedback: Block,
    phi: list[Tensor],
    below: Tensor,
    noise: Tensor,
    output_noise: Tensor,
) -> Tensor:
    """L-DRL: -2 e (g(f(x + e)) - g(f(x))) + ||g(y + d) - g(y)||^2 with y = f(x), e and d noise, f detached.

    Not divided by sigma^2.
    """
    x = below.detach()
    y = forward(x, theta).detach()
    corrupted = forward(x + noise, theta).detach()
    matched = inner_product(noise, feedback(corrupted, phi) - feedback(y, phi))
    return -2 * matched + squared_distance(feedback(y + output_noise, phi), feedback(y, phi))


def path_to_top(blocks: list[Block], params: Groups, start: int) -> tuple[Block, list[Tensor]]:
    """Compose the blocks after `start` into one function of h_start, for the direct form."""
    flat = [theta for group in params[start + 1 :] for theta in group]

    def forward(h: Tensor, theta: list[Tensor]) -> Tensor:
        used = 0
        for i in range(start + 1, len(blocks)):
            count = len(params[i])
            h = blocks[i](h, theta[used : used + count])
            used += count
        return h

    return forward, flat


def feedback_step(
    blocks: list[Block],
    params: Groups,
    feedbacks: Sequence[Block],
    feedback_params: Groups,
    x: Tensor,
    noises: Sequence[Tensor],
    output_noises: Sequence[Tensor] | None = None,
    *,
    direct: bool = False,
) -> tuple[list[Tensor], Groups]:
    """One iteration for every feedback net: (losses, gradients) by hidden block.

    noises[l] has h_l's shape. With `output_noises` the loss is L-DRL's, and output_noises[l] has the shape of what
    feedbacks[l] reads: h_{l+1}, or h_L in the direct form; otherwise it is the vanilla reconstruction. In the direct
    form f is the whole path from h_l to the logits. The outputs below stay as they were without noise.
    """
    outputs = forward_outputs(blocks, params, x)
    losses, gradients = [], []
    for i in range(len(blocks) - 1):
        phi = _leaves(feedback_params[i])
        forward, theta = path_to_top(blocks, params, i) if direct else (blocks[i + 1], params[i + 1])
        if output_noises is None:
            loss = reconstruction_loss(forward, theta, feedbacks[i], phi, outputs[i], noises[i])
        else:
            loss = difference_reconstruction_loss(
                forward, theta, feedbacks[i], phi, outputs[i], noises[i], output_noises[i]
            )
        losses.append(loss.detach())
        gradients.append(_gradients(loss, phi))
    return losses, gradients
