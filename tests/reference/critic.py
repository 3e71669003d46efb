"""Local critic training (Lee et al.): every block learns from a critic of its output, the critic from the next exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .scalars import logsumexp, mean
from .training import Block, Groups, _gradients, _leaves


class CriticStep(NamedTuple):
    """What one batch says.

    Attributes:
        losses: By block, the mean of L_i; the network's own cross-entropy for the last.
        gradients: By block, of its own L_i.
        critic_losses: By hidden block, the mean of |L_i - L_{i+1}|.
        critic_gradients: By hidden block, of that mean.
    """

    losses: list[Tensor]
    gradients: Groups
    critic_losses: list[Tensor]
    critic_gradients: Groups


def sample_losses(logits: Tensor, y: Tensor) -> Tensor:
    """(N): cross-entropy of every sample."""
    samples, classes = logits.shape
    result = []
    for n in range(samples):
        row = [logits[n, z] for z in range(classes)]
        result.append(logsumexp(row) - row[int(y[n])])
    return torch.stack(result)


def average(values: Tensor) -> Tensor:
    return mean([values[n] for n in range(values.shape[0])])


def critic_loss(own: Tensor, following: Tensor) -> Tensor:
    """Average |L_i - sg L_{i+1}| over the samples; the difference is taken sample by sample."""
    following = following.detach()
    return mean([(own[n] - following[n]).abs() for n in range(own.shape[0])])


def critic_step(
    blocks: list[Block],
    params: Groups,
    critics: Sequence[Block],
    critic_params: Groups,
    x: Tensor,
    y: Tensor,
) -> CriticStep:
    """Take both gradients from the parameters as they were before the batch.

    L_i = CE(c_i(h_i), y) with h_i = f_i(sg[h_{i-1}]); L of the last block is the true loss. f_i descends L_i through
    a fixed c_i; c_i descends |L_i - L_{i+1}| on the detached h_i.
    """
    last = len(blocks) - 1
    per_sample: list[Tensor] = []
    outputs: list[Tensor] = []
    gradients: Groups = []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        logits = h if i == last else critics[i](h, critic_params[i])
        losses = sample_losses(logits, y)
        gradients.append(_gradients(average(losses), theta))
        per_sample.append(losses.detach())
        outputs.append(h.detach())
        x = h

    critic_losses, critic_gradients = [], []
    for i in range(last):
        phi = _leaves(critic_params[i])
        error = critic_loss(sample_losses(critics[i](outputs[i], phi), y), per_sample[i + 1])
        critic_losses.append(error.detach())
        critic_gradients.append(_gradients(error, phi))
    return CriticStep([average(losses) for losses in per_sample], gradients, critic_losses, critic_gradients)
