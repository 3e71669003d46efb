"""Deeper auxiliary networks: AugLocal, the momentum auxiliary network (MAN) and HPFF."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .greedy import LocalLoss, descend, gradients_of, leaves_of
from .scalars import total
from .training import Block, Groups, Step

# AugLocal (Ma et al., ICLR 2024)


def auxiliary_indices(layer: int, layers: int, depth: int) -> list[int]:
    """Layers that layer l's auxiliary network copies: round(l + (L - l - 1) i / d) for i = 1 .. d.

    Counted from 0, so that the last is L - 1; all of l + 1 .. L - 1 where there are no more than d. A half is rounded
    to the even neighbour, as Python's `round` does.
    """
    above = layers - layer - 1
    if above <= depth:
        return list(range(layer + 1, layers))
    return [round(layer + above * i / depth) for i in range(1, depth + 1)]


def pyramid_depth(layer: int, modules: int, depth: int, decay: float = 0.5) -> int:
    """d_l = max(1, round(d (1 - r) + r)) with r = c l / (K - 2), for the modules l = 0 .. K - 2 that have one.

    K = 2 leaves module 0 alone, with d. A half is rounded to the even neighbour.
    """
    ratio = decay * layer / (modules - 2) if modules > 2 else 0.0
    return max(1, round(depth * (1 - ratio) + ratio))


# MAN (Su et al., ECCV 2024)


def ema_update(average: Sequence[Tensor], values: Sequence[Tensor], momentum: float = 0.995) -> list[Tensor]:
    """m average + (1 - m) value, for parameters alone."""
    return [(momentum * a + (1 - momentum) * v).detach() for a, v in zip(average, values, strict=True)]


def momentum_output(block: Block, x: Tensor, copy: list[Tensor], average: list[Tensor]) -> Tensor:
    """y = LB(x) + EMA(x), both of the next block's form; the EMA's parameters are fixed, its input is not."""
    return block(x, copy) + block(x, [a.detach() for a in average])


def man_step(
    blocks: list[Block],
    params: Groups,
    copies: Groups,
    averages: Groups,
    heads: Groups,
    losses_of: Sequence[LocalLoss],
    x: Tensor,
    y: Tensor,
    lr: float,
    momentum: float = 0.995,
) -> tuple[Step, Groups, Groups]:
    """Train hidden block i by losses_of[i](LB_i(h) + EMA_i(h), head i, y), where both have the form of block i + 1.

    Hidden blocks beyond len(copies), such as the one before the classifier, score h itself. After all updates every
    average moves toward the new parameters of block i + 1, which is the same as before the next batch.
    Returns (step, copies, averages); `dictionary` of the step holds the heads.
    """
    losses: list[Tensor | None] = []
    gradients, updated, new_copies, new_heads = [], [], [], []
    for i in range(len(blocks)):
        theta = leaves_of(params[i])
        last = i == len(blocks) - 1
        copy = leaves_of(copies[i]) if i < len(copies) else []
        phi = [] if last else leaves_of(heads[i])
        h = blocks[i](x.detach(), theta)
        if last:
            loss = cross_entropy(h, y)
        elif i < len(copies):
            loss = losses_of[i](momentum_output(blocks[i + 1], h, copy, averages[i]), phi, y)
        else:
            loss = losses_of[i](h, phi, y)
        every_gradient = iter(gradients_of(loss, [*theta, *copy, *phi]))
        losses.append(loss.detach())
        gradients.append([next(every_gradient) for _ in theta])
        updated.append(descend(theta, gradients[i], lr))
        new_copies.append(descend(copy, [next(every_gradient) for _ in copy], lr))
        new_heads.append(descend(phi, list(every_gradient), lr))
        x = h
    moved = [ema_update(averages[i], updated[i + 1], momentum) for i in range(len(averages))]
    return Step(losses, gradients, updated, new_heads[:-1]), new_copies[: len(copies)], moved


# HPFF (Su et al., ECCV 2024)


def patches(h: Tensor, side: int) -> list[Tensor]:
    """Cut (N, C, H, W) into side x side equal patches, row by row."""
    height, width = h.shape[2:]
    if height % side or width % side:
        raise ValueError(f"side must divide the map's {height} x {width}, got {side}")
    rows, columns = height // side, width // side
    return [
        h[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] for i in range(side) for j in range(side)
    ]


def patch_average(head: Callable[[Tensor], Tensor], h: Tensor, side: int = 2) -> Tensor:
    """Average the head's outputs on the patches."""
    outputs = [head(patch) for patch in patches(h, side)]
    result = torch.zeros_like(outputs[0])
    for output in outputs:
        result = result + output
    return result / len(outputs)


def hpff_step(
    blocks: list[Block],
    params: Groups,
    heads: Groups,
    cascade_heads: Groups,
    losses_of: Sequence[LocalLoss],
    cascade_losses_of: Sequence[LocalLoss],
    x: Tensor,
    y: Tensor,
    lr: float,
    weights: Sequence[tuple[float, float]],
) -> tuple[Step, Groups]:
    """Train blocks by w_x L_ind + w_y L_casc, with weights[i] = (w_x, w_y) of block i.

    L_ind scores f_i on the detached output of block i - 1 by losses_of[i] and head i. L_casc scores f_i after f_{i-1}
    on the detached output of block i - 2 by cascade_losses_of[i] and cascade head i; block 0 has none, and its w_y is
    not used. Block i gets the sum of its own total and of block i + 1's cascade. All updates follow all losses; the
    last block's losses may be the cross-entropy of its output with an empty head. `losses` holds the totals,
    `dictionary` the heads. Returns (step, cascade heads).
    """
    inputs = [x.detach()]
    for block, theta in zip(blocks, params, strict=True):
        inputs.append(block(inputs[-1], theta).detach())
    gradients = [[torch.zeros_like(theta) for theta in group] for group in params]
    losses: list[Tensor | None] = []
    new_heads, new_cascade_heads = [], []
    for i in range(len(blocks)):
        theta, phi, psi = leaves_of(params[i]), leaves_of(heads[i]), leaves_of(cascade_heads[i])
        below = leaves_of(params[i - 1]) if i > 0 else []
        terms = [weights[i][0] * losses_of[i](blocks[i](inputs[i], theta), phi, y)]
        if i > 0:
            h = blocks[i](blocks[i - 1](inputs[i - 1], below), theta)
            terms.append(weights[i][1] * cascade_losses_of[i](h, psi, y))
        loss = total(terms)
        trained = [*theta, *phi, *below, *(psi if i > 0 else [])]
        every_gradient = iter(gradients_of(loss, trained))
        gradients[i] = [g + next(every_gradient) for g in gradients[i]]
        new_heads.append(descend(phi, [next(every_gradient) for _ in phi], lr))
        if i > 0:
            gradients[i - 1] = [g + next(every_gradient) for g in gradients[i - 1]]
        new_cascade_heads.append(descend(psi, list(every_gradient), lr) if i > 0 else list(cascade_heads[0]))
        losses.append(loss.detach())
    updated = [descend(params[i], gradients[i], lr) for i in range(len(blocks))]
    return Step(losses, gradients, updated, new_heads), new_cascade_heads
