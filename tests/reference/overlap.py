"""Overlapping local blocks (LoCo, Xiong et al. 2020; Laskin et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .greedy import LocalLoss, descend, leaves_of
from .training import Block, Groups, Step

Window = tuple[int, int]
"""Blocks start .. stop - 1."""


def windows(blocks: int, size: int, overlap: int) -> list[Window]:
    """[i (b - o), i (b - o) + b) for i = 0, 1, ..., as far as needed to cover all blocks; the last is cut short.

    No window starts once the last block is covered, so that every window brings a block of its own.
    """
    found = []
    start = 0
    while True:
        found.append((start, min(start + size, blocks)))
        if start + size >= blocks:
            return found
        start += size - overlap


def overlap_step(
    blocks: list[Block],
    params: Groups,
    spans: Sequence[Window],
    heads: Groups,
    losses_of: Sequence[LocalLoss],
    x: Tensor,
    y: Tensor,
    lr: float,
) -> Step:
    """Train every window by its own loss at its own end, from the detached input of its first block.

    Window w scores with losses_of[w](output, head w, y); a window that ends the network may take the cross-entropy of
    its output and an empty head. A block in several windows gets the sum of their gradients, and all blocks are
    updated after all windows. `losses` has one entry a window; `dictionary` returns the updated heads.
    """
    inputs = [x.detach()]
    for block, theta in zip(blocks, params, strict=True):
        inputs.append(block(inputs[-1], theta).detach())
    gradients = [[torch.zeros_like(theta) for theta in group] for group in params]
    losses: list[Tensor | None] = []
    new_heads = []
    for w in range(len(spans)):
        start, stop = spans[w]
        leaves = [leaves_of(params[i]) for i in range(start, stop)]
        phi = leaves_of(heads[w])
        h = inputs[start]
        for i in range(start, stop):
            h = blocks[i](h, leaves[i - start])
        loss = losses_of[w](h, phi, y)
        every_gradient = iter(torch.autograd.grad(loss, [*(t for group in leaves for t in group), *phi]))
        for i in range(start, stop):
            gradients[i] = [g + next(every_gradient) for g in gradients[i]]
        losses.append(loss.detach())
        new_heads.append(descend(phi, list(every_gradient), lr))
    updated = [descend(params[i], gradients[i], lr) for i in range(len(blocks))]
    return Step(losses, gradients, updated, new_heads)
