"""One training step of every method, written out: no module, no optimiser object, no `.backward()`.

A network is a list of functions h = block(x, parameters) with a list of parameters for each. The last block
gives the logits and is trained by cross-entropy on its detached input. The update is theta - lr * gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contrast import supervised_contrastive_loss
from .dictionary import average_positions, cross_entropy, dictionary_loss
from .prediction import pred_logits

Block = Callable[[Tensor, list[Tensor]], Tensor]
Groups = list[list[Tensor]]
DictionaryLoss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Scores (block output, dictionary, y, chunks)."""


class Step(NamedTuple):
    """What one batch did.

    `losses` holds None for a block without a loss of its own. `dictionary` is the shared matrix, a list with
    one matrix (or one [weight, bias]) for every hidden block, or None where the method has none.
    """

    losses: list[Tensor | None]
    gradients: Groups
    params: Groups
    dictionary: Tensor | list[Tensor] | Groups | None


def plain_dictionary_loss(h: Tensor, dictionary: Tensor, y: Tensor, chunks: int) -> Tensor:
    return dictionary_loss(h, dictionary, y, chunks=chunks)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs)) if inputs else []


def _sgd(tensors: Sequence[Tensor], gradients: Sequence[Tensor], lr: float) -> list[Tensor]:
    return [(t - lr * g).detach() for t, g in zip(tensors, gradients, strict=True)]


def _last_block(
    blocks: list[Block], theta: list[Tensor], x: Tensor, y: Tensor, lr: float
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    loss = cross_entropy(blocks[-1](x.detach(), theta), y)
    gradients = _gradients(loss, theta)
    return loss.detach(), gradients, _sgd(theta, gradients, lr)


def _chunks_of(blocks: list[Block], chunks: Sequence[int] | None) -> Sequence[int]:
    return chunks if chunks is not None else [1] * (len(blocks) - 1)


def backprop_step(blocks: list[Block], params: Groups, x: Tensor, y: Tensor, lr: float) -> Step:
    """Train every block by the gradient of the network's own loss."""
    leaves = [_leaves(group) for group in params]
    h = x
    for i in range(len(blocks)):
        h = blocks[i](h, leaves[i])
    loss = cross_entropy(h, y)
    every_gradient = iter(_gradients(loss, [theta for group in leaves for theta in group]))
    gradients = [[next(every_gradient) for _ in group] for group in leaves]
    updated = [_sgd(leaves[i], gradients[i], lr) for i in range(len(blocks))]
    losses: list[Tensor | None] = [None] * (len(blocks) - 1)
    return Step([*losses, loss.detach()], gradients, updated, None)


def dcl_step(
    blocks: list[Block],
    params: Groups,
    dictionary: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    chunks: Sequence[int] | None = None,
    loss_fn: DictionaryLoss = plain_dictionary_loss,
) -> Step:
    """Update the shared dictionary after every block's loss, before the next block's loss is taken."""
    chunks = _chunks_of(blocks, chunks)
    losses: list[Tensor | None] = []
    gradients, updated = [], []
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        [t] = _leaves([dictionary])
        h = blocks[i](x.detach(), theta)
        loss = loss_fn(h, t, y, chunks[i])
        *theta_gradients, t_gradient = _gradients(loss, [*theta, t])
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        [dictionary] = _sgd([t], [t_gradient], lr)
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], dictionary)


def dcl_static_step(
    blocks: list[Block],
    params: Groups,
    dictionary: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    chunks: Sequence[int] | None = None,
    loss_fn: DictionaryLoss = plain_dictionary_loss,
) -> Step:
    """Never update the dictionary (DCL-S)."""
    chunks = _chunks_of(blocks, chunks)
    t = dictionary.detach()
    losses: list[Tensor | None] = []
    gradients, updated = [], []
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        loss = loss_fn(h, t, y, chunks[i])
        theta_gradients = _gradients(loss, theta)
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], t.clone())


def dcl_averaged_step(
    blocks: list[Block],
    params: Groups,
    dictionary: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    chunks: Sequence[int] | None = None,
    loss_fn: DictionaryLoss = plain_dictionary_loss,
) -> Step:
    """Update the dictionary once a batch by the mean of the hidden blocks' gradients."""
    chunks = _chunks_of(blocks, chunks)
    losses: list[Tensor | None] = []
    gradients, updated = [], []
    gradient_sum = torch.zeros_like(dictionary)
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        [t] = _leaves([dictionary])
        h = blocks[i](x.detach(), theta)
        loss = loss_fn(h, t, y, chunks[i])
        *theta_gradients, t_gradient = _gradients(loss, [*theta, t])
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        gradient_sum = gradient_sum + t_gradient
        x = h
    [dictionary] = _sgd([dictionary], [gradient_sum / (len(blocks) - 1)], lr)
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], dictionary)


def dcl_last_step(
    blocks: list[Block],
    params: Groups,
    dictionary: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    chunks: Sequence[int] | None = None,
    loss_fn: DictionaryLoss = plain_dictionary_loss,
) -> Step:
    """Update the dictionary by the loss of the last hidden block alone (DCL-O)."""
    chunks = _chunks_of(blocks, chunks)
    losses: list[Tensor | None] = []
    gradients, updated = [], []
    new_dictionary = dictionary.detach().clone()
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        if i < len(blocks) - 2:
            loss = loss_fn(h, dictionary.detach(), y, chunks[i])
            theta_gradients = _gradients(loss, theta)
        else:
            [t] = _leaves([dictionary])
            loss = loss_fn(h, t, y, chunks[i])
            *theta_gradients, t_gradient = _gradients(loss, [*theta, t])
            [new_dictionary] = _sgd([t], [t_gradient], lr)
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], new_dictionary)


def dcl_layerwise_step(
    blocks: list[Block],
    params: Groups,
    dictionaries: list[Tensor],
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    chunks: Sequence[int] | None = None,
    loss_fn: DictionaryLoss = plain_dictionary_loss,
) -> Step:
    """Give every hidden block a dictionary of its own, as wide as the block (DCL-LD)."""
    chunks = _chunks_of(blocks, chunks)
    losses: list[Tensor | None] = []
    gradients, updated, new_dictionaries = [], [], []
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        [t] = _leaves([dictionaries[i]])
        h = blocks[i](x.detach(), theta)
        loss = loss_fn(h, t, y, chunks[i])
        *theta_gradients, t_gradient = _gradients(loss, [*theta, t])
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        new_dictionaries.extend(_sgd([t], [t_gradient], lr))
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], new_dictionaries)


def pred_step(
    blocks: list[Block],
    params: Groups,
    heads: Groups,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    budget: int,
) -> Step:
    """Train every hidden block with its head [weight, bias]; `dictionary` returns the updated heads."""
    losses: list[Tensor | None] = []
    gradients, updated, new_heads = [], [], []
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        weight, bias = _leaves(heads[i])
        h = blocks[i](x.detach(), theta)
        loss = cross_entropy(pred_logits(h, weight, bias, budget), y)
        *theta_gradients, weight_gradient, bias_gradient = _gradients(loss, [*theta, weight, bias])
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        new_heads.append(_sgd([weight, bias], [weight_gradient, bias_gradient], lr))
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], new_heads)


def feat_step(
    blocks: list[Block],
    params: Groups,
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    temperature: float = 0.07,
    chunks: Sequence[int] | None = None,
) -> Step:
    """Train every hidden block by the supervised contrastive loss of its averaged features (L_feat)."""
    chunks = _chunks_of(blocks, chunks)
    losses: list[Tensor | None] = []
    gradients, updated = [], []
    for i in range(len(blocks) - 1):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        loss = supervised_contrastive_loss(average_positions(h, chunks[i]), y, temperature)
        theta_gradients = _gradients(loss, theta)
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        updated.append(_sgd(theta, theta_gradients, lr))
        x = h
    loss, last_gradients, last_updated = _last_block(blocks, _leaves(params[-1]), x, y, lr)
    return Step([*losses, loss], [*gradients, last_gradients], [*updated, last_updated], None)
