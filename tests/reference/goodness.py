"""Goodness of activities: Forward-Forward (Hinton 2022), SymBa, Mono-Forward and channel groups (CwComp).

Blocks are the hidden blocks only: a last block that gives logits is trained by cross-entropy elsewhere.
Every random number (negative labels, class patterns) is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy, feature_vectors, pool_embedding
from .scalars import dot, matrix_vector, mean
from .training import Block, Groups, _gradients, _leaves

Goodness = Literal["sum", "mean"]
Border = Literal["rms", "l2", "none"]


class LocalStep(NamedTuple):
    """What one batch says: `losses` and `gradients` by block, detached.

    `auxiliary` holds the gradients of what is trained beside each block, `state` each block's new running mean.
    """

    losses: list[Tensor]
    gradients: Groups
    auxiliary: list[Tensor] | None = None
    state: list[Tensor] | None = None


def _entries(sample: Tensor) -> list[Tensor]:
    flat = sample.reshape(-1)
    return [flat[d] for d in range(flat.shape[0])]


def _softplus(value: Tensor) -> Tensor:
    """Return log(1 + e^v), as v + log(1 + e^-v) for v > 0."""
    return value + torch.log1p(torch.exp(-value)) if value.item() > 0 else torch.log1p(torch.exp(value))


# ---------------------------------------------------------------- labels in the input


def check_negatives(y: Tensor, negatives: Tensor) -> None:
    """Refuse a negative label that is the true one."""
    for n in range(len(y)):
        if int(y[n]) == int(negatives[n]):
            raise ValueError(f"negatives must differ from y, got the true label {int(y[n])} for sample {n}")


def _overlay(x: Tensor, values: list[list[float]], every_channel: bool) -> Tensor:
    result = x.detach().clone()
    for n in range(x.shape[0]):
        parts = [result[n, c] for c in range(x.shape[1])] if every_channel and x.dim() == 4 else [result[n]]
        for part in parts:
            flat = part.view(-1)
            if len(values[n]) > flat.shape[0]:
                raise ValueError(f"x must have one pixel a class, got {flat.shape[0]} pixels for {len(values[n])}")
            for z, value in enumerate(values[n]):
                flat[z] = value
    return result


def overlay_label(
    x: Tensor, y: Tensor, classes: int, *, high: float = 1.0, low: float = 0.0, every_channel: bool = False
) -> Tensor:
    """Replace the first Z pixels by the one-hot label: `high` at y_n, `low` elsewhere.

    Pixels are counted along a sample's entries in memory order, so an image (C, H, W) is marked in channel 0;
    with `every_channel`, in every channel alike.
    """
    values = [[high if int(y[n]) == z else low for z in range(classes)] for n in range(x.shape[0])]
    return _overlay(x, values, every_channel)


def overlay_neutral(
    x: Tensor, classes: int, *, high: float = 1.0, low: float = 0.0, every_channel: bool = False
) -> Tensor:
    """Replace the first Z pixels by the average of all labels: low + (high - low) / Z, which is 1 / Z of 0 and 1."""
    value = low + (high - low) / classes
    return _overlay(x, [[value] * classes for _ in range(x.shape[0])], every_channel)


def append_pattern(x: Tensor, patterns: Tensor, y: Tensor, axis: int = 1) -> Tensor:
    """Join every sample with its class's fixed pattern (SymBa) along an axis of the batch.

    x (N, D) with patterns (Z, P) gives (N, D + P); images take patterns (Z, C', H, W) on axis 1 or (Z, C, H, W')
    on axis 3, beside the image.
    """
    return torch.stack([torch.cat([x[n], patterns[int(y[n])]], dim=axis - 1) for n in range(x.shape[0])])


# ---------------------------------------------------------------- goodness and its losses


def goodness(h: Tensor, kind: Goodness = "sum") -> Tensor:
    """(N, ...) -> (N): G_n = sum_j h_nj^2 over all of the sample's entries, or their mean."""
    result = []
    for n in range(h.shape[0]):
        entries = _entries(h[n])
        square = dot(entries, entries)
        result.append(square if kind == "sum" else square / len(entries))
    return torch.stack(result)


def forward_forward_loss(positive: Tensor, negative: Tensor, theta: float) -> Tensor:
    """Average softplus(-(G_pos - theta)) + softplus(G_neg - theta) over the N pairs of goodnesses.

    The two terms are summed, not halved: this is twice the binary cross-entropy averaged over 2N samples.
    """
    pairs = range(positive.shape[0])
    return mean([_softplus(theta - positive[n]) + _softplus(negative[n] - theta) for n in pairs])


def symba_loss(positive: Tensor, negative: Tensor, alpha: float = 4.0) -> Tensor:
    """Average softplus(-alpha (G_pos - G_neg)) over the pairs."""
    return mean([_softplus(-alpha * (positive[n] - negative[n])) for n in range(positive.shape[0])])


def peer_normalisation(
    h: Tensor,
    running: Tensor,
    *,
    weight: float = 0.03,
    momentum: float = 0.9,
    per_channel: bool = False,
) -> tuple[Tensor, Tensor]:
    """Penalise units whose running mean activity leaves the average: return (penalty, new running mean).

    r_j <- momentum sg[r_j] + (1 - momentum) mean_n h_nj on positive samples, and the penalty is
    weight mean_j (r_j - mean_k r_k)^2 of the new r, whose gradient reaches h through the newest share and the mean.
    A unit is an entry of the flattened sample; with `per_channel`, a channel of the map, averaged over positions.
    """
    samples = h.shape[0]
    if per_channel:
        vectors = feature_vectors(h)
        units = [[mean([v[c] for v in vectors[n]]) for c in range(len(vectors[n][0]))] for n in range(samples)]
    else:
        units = [_entries(h[n]) for n in range(samples)]
    previous = _entries(running.detach())
    updated = [
        momentum * previous[j] + (1 - momentum) * mean([units[n][j] for n in range(samples)])
        for j in range(len(previous))
    ]
    average = mean(updated)
    penalty = weight * mean([(r - average) ** 2 for r in updated])
    return penalty, torch.stack(updated).detach().reshape(running.shape)


# ---------------------------------------------------------------- between the layers


def normalised(h: Tensor, border: Border = "rms", eps: float = 0.0) -> Tensor:
    """Divide every sample by its root mean square, or by its Euclidean norm, plus eps; a sample of zeros stays."""
    if border == "none":
        return h
    rows = []
    for n in range(h.shape[0]):
        entries = _entries(h[n])
        square = dot(entries, entries)
        if square.item() == 0:
            rows.append(h[n])
            continue
        length = torch.sqrt(square if border == "l2" else square / len(entries))
        rows.append(h[n] / (length + eps))
    return torch.stack(rows)


# ---------------------------------------------------------------- steps


def _pair_step(
    blocks: list[Block],
    params: Groups,
    positive: Tensor,
    negative: Tensor,
    score: Callable[[int, Tensor, Tensor], Tensor],
    border: Border,
    eps: float,
) -> LocalStep:
    samples = positive.shape[0]
    x = torch.cat([positive, negative]).detach()
    losses, gradients = [], []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x, theta)
        loss = score(i, h[:samples], h[samples:])
        gradients.append(_gradients(loss, theta))
        losses.append(loss.detach())
        x = normalised(h.detach(), border, eps)
    return LocalStep(losses, gradients)


def forward_forward_step(
    blocks: list[Block],
    params: Groups,
    positive: Tensor,
    negative: Tensor,
    thetas: Sequence[float],
    *,
    kind: Goodness = "sum",
    border: Border = "rms",
    eps: float = 0.0,
    running: Sequence[Tensor] | None = None,
    peer_weight: float = 0.03,
    peer_momentum: float = 0.9,
    per_channel: bool = False,
) -> LocalStep:
    """Run positive and negative inputs as one batch; block i's loss has the threshold thetas[i].

    The first block's input is not normalised. Peer normalisation is added where `running` is given, from the
    positive samples alone.
    """
    state: list[Tensor] = []

    def score(i: int, h_positive: Tensor, h_negative: Tensor) -> Tensor:
        loss = forward_forward_loss(goodness(h_positive, kind), goodness(h_negative, kind), thetas[i])
        if running is None:
            return loss
        penalty, updated = peer_normalisation(
            h_positive, running[i], weight=peer_weight, momentum=peer_momentum, per_channel=per_channel
        )
        state.append(updated)
        return loss + penalty

    step = _pair_step(blocks, params, positive, negative, score, border, eps)
    return step._replace(state=None if running is None else state)


def symba_step(
    blocks: list[Block],
    params: Groups,
    positive: Tensor,
    negative: Tensor,
    *,
    alpha: float = 4.0,
    kind: Goodness = "sum",
    border: Border = "rms",
    eps: float = 0.0,
) -> LocalStep:
    """As Forward-Forward, by the gap between a sample's two goodnesses."""

    def score(i: int, h_positive: Tensor, h_negative: Tensor) -> Tensor:
        return symba_loss(goodness(h_positive, kind), goodness(h_negative, kind), alpha)

    return _pair_step(blocks, params, positive, negative, score, border, eps)


# ---------------------------------------------------------------- inference


def label_goodness(
    blocks: list[Block],
    params: Groups,
    inputs: Sequence[Tensor],
    *,
    kind: Goodness = "sum",
    border: Border = "rms",
    eps: float = 0.0,
    skip: int = 1,
) -> Tensor:
    """Score every class: (N, Z), the goodness summed over the blocks except the first, of the input for each label.

    inputs[z] holds the batch with label z in it. A network of one block is scored by that block.
    """
    columns = []
    for x in inputs:
        per_block = []
        for i in range(len(blocks)):
            h = blocks[i](x, params[i])
            per_block.append(goodness(h, kind))
            x = normalised(h, border, eps)
        counted = per_block[skip:] or per_block
        columns.append(torch.stack([sum(g[n] for g in counted) for n in range(x.shape[0])]))
    return torch.stack(columns, dim=1).detach()


def one_pass_features(
    blocks: list[Block], params: Groups, x: Tensor, *, border: Border = "rms", eps: float = 0.0, skip: int = 1
) -> Tensor:
    """Concatenate the normalised flat activities of blocks 2..L for an input with the neutral label."""
    activities = []
    for i in range(len(blocks)):
        x = normalised(blocks[i](x, params[i]), border, eps)
        activities.append(x.detach().reshape(x.shape[0], -1))
    return torch.cat(activities[skip:] or activities, dim=1)


def one_pass_logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, P) features, (Z, P) weight -> (N, Z); trained by cross-entropy on the detached features."""
    rows = []
    for n in range(features.shape[0]):
        scores = matrix_vector(weight, _entries(features[n]))
        rows.append(torch.stack([scores[z] + bias[z] for z in range(len(scores))]))
    return torch.stack(rows)


# ---------------------------------------------------------------- goodness by class, without negatives


def projected_goodness(h: Tensor, projection: Tensor) -> Tensor:
    """Mono-Forward: G = a M^T with the flattened activity a (N, D) and M (Z, D), without a bias: (N, Z)."""
    return torch.stack([torch.stack(matrix_vector(projection, _entries(h[n]))) for n in range(h.shape[0])])


def mono_forward_loss(h: Tensor, projection: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(projected_goodness(h, projection), y)


def mono_forward_step(
    blocks: list[Block], params: Groups, projections: Sequence[Tensor], x: Tensor, y: Tensor
) -> LocalStep:
    """Train every block with its own projection; `auxiliary` holds the projections' gradients."""
    losses, gradients, auxiliary = [], [], []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        [projection] = _leaves([projections[i]])
        h = blocks[i](x.detach(), theta)
        loss = mono_forward_loss(h, projection, y)
        *theta_gradients, projection_gradient = _gradients(loss, [*theta, projection])
        losses.append(loss.detach())
        gradients.append(theta_gradients)
        auxiliary.append(projection_gradient)
        x = h
    return LocalStep(losses, gradients, auxiliary)


def group_goodness(h: Tensor, classes: int, chunks: int = 1) -> Tensor:
    """CwComp: (N, Z), the mean of squares over the channels of group z and all positions.

    Group z holds the channels floor(z C / Z) .. ceil((z + 1) C / Z) - 1: C / Z contiguous channels each where Z
    divides C; otherwise neighbours share a channel, and with C < Z whole groups coincide.
    """
    rows = []
    for positions in feature_vectors(h, chunks):
        channels = len(positions[0])
        squares = torch.stack([mean([v[c] * v[c] for v in positions]) for c in range(channels)])
        rows.append(pool_embedding(squares, classes))
    return torch.stack(rows)


def group_loss(h: Tensor, y: Tensor, classes: int, chunks: int = 1) -> Tensor:
    return cross_entropy(group_goodness(h, classes, chunks), y)


def group_step(
    blocks: list[Block], params: Groups, x: Tensor, y: Tensor, classes: int, *, chunks: Sequence[int] | None = None
) -> LocalStep:
    """Train every block by cross-entropy over its group goodnesses; nothing is normalised between blocks."""
    losses, gradients = [], []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        loss = group_loss(h, y, classes, 1 if chunks is None else chunks[i])
        losses.append(loss.detach())
        gradients.append(_gradients(loss, theta))
        x = h
    return LocalStep(losses, gradients)
