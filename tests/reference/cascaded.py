"""Cascaded Forward (CaFo): frozen blocks, each with a bias-free linear predictor trained on its flattened output.

H (N, P) holds the flattened outputs, W (P, Z) the predictor, and the logits are H W. In the DFA form the block too is
trained, by its predictor's error sent back through a fixed random matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy
from .scalars import dot, logsumexp, mean, total
from .training import Block, Groups, _gradients, _leaves

Loss = Literal["mse", "ce", "sparsemax"]
Normalise = Literal["softmax", "sparsemax", "none"]


class CascadedStep(NamedTuple):
    """What one batch says by block: the predictor's loss, logits and gradient, and the block's gradients.

    The block's gradients are empty lists where blocks are frozen.
    """

    losses: list[Tensor]
    logits: list[Tensor]
    predictor_gradients: list[Tensor]
    gradients: Groups


# ---------------------------------------------------------------- sparsemax


def sparsemax(z: Tensor) -> Tensor:
    """Project (Z) onto the simplex: p = max(z - tau, 0).

    With z sorted downwards, k = max{k: 1 + k z_(k) > sum_{i<=k} z_(i)} and tau = (sum_{i<=k} z_(i) - 1) / k.
    """
    order = sorted(range(z.shape[0]), key=lambda i: -z[i].item())
    support = 1
    for k in range(1, len(order) + 1):
        if 1 + k * z[order[k - 1]].item() > sum(z[order[i]].item() for i in range(k)):
            support = k
    tau = (total([z[order[i]] for i in range(support)]) - 1) / support
    return torch.stack([(z[i] - tau).clamp(min=0) for i in range(z.shape[0])])


def simplex_projection(z: Tensor) -> Tensor:
    """Find the nearest point of the simplex by trying every support: for tests of `sparsemax`."""
    size = z.shape[0]
    best, nearest = None, float("inf")
    for count in range(1, size + 1):
        for support in combinations(range(size), count):
            tau = (sum(z[i].item() for i in support) - 1) / count
            point = [z[i].item() - tau if i in support else 0.0 for i in range(size)]
            distance = sum((point[i] - z[i].item()) ** 2 for i in range(size))
            if min(point) >= 0 and distance < nearest:
                best, nearest = point, distance
    return torch.tensor(best, dtype=torch.float64)


def sparsemax_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Average -z_y + 1/2 sum_{i in S} (z_i^2 - tau^2) + 1/2 over the samples; S is the support of sparsemax(z).

    The gradient in z is sparsemax(z) - onehot(y).
    """
    losses = []
    for n in range(logits.shape[0]):
        z = logits[n]
        p = sparsemax(z)
        support = [i for i in range(z.shape[0]) if p[i].item() > 0]
        tau = (total([z[i] for i in support]) - 1) / len(support)
        losses.append(-z[int(y[n])] + total([z[i] ** 2 - tau**2 for i in support]) / 2 + 0.5)
    return mean(losses)


# ---------------------------------------------------------------- predictors


def flatten(h: Tensor) -> Tensor:
    return h.reshape(h.shape[0], -1)


def predictor_logits(h: Tensor, weight: Tensor) -> Tensor:
    """H W."""
    features = flatten(h)
    inputs, classes = weight.shape
    rows = []
    for n in range(features.shape[0]):
        vector = [features[n, p] for p in range(inputs)]
        rows.append(torch.stack([dot(vector, [weight[p, z] for p in range(inputs)]) for z in range(classes)]))
    return torch.stack(rows)


def one_hot(y: Tensor, classes: int) -> Tensor:
    rows = torch.zeros(y.shape[0], classes, dtype=torch.float64)
    for n in range(y.shape[0]):
        rows[n, int(y[n])] = 1.0
    return rows


def mse_loss(logits: Tensor, y: Tensor) -> Tensor:
    """(1/N) sum_n 1/2 ||z_n - onehot(y_n)||^2."""
    labels = one_hot(y, logits.shape[1])
    losses = []
    for n in range(logits.shape[0]):
        difference = [logits[n, z] - labels[n, z] for z in range(logits.shape[1])]
        losses.append(dot(difference, difference) / 2)
    return mean(losses)


def predictor_loss(logits: Tensor, y: Tensor, loss: Loss) -> Tensor:
    return {"mse": mse_loss, "ce": cross_entropy, "sparsemax": sparsemax_loss}[loss](logits, y)


def output_error(logits: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """By hand, the gradient of the batch-mean loss in the logits: (prediction - onehot) / N."""
    kinds: dict[Loss, Normalise] = {"mse": "none", "ce": "softmax", "sparsemax": "sparsemax"}
    probabilities = predictions(logits, kinds[loss])
    return (probabilities - one_hot(y, logits.shape[1])) / logits.shape[0]


def solve(matrix: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    """Gaussian elimination with row pivoting; both arguments are consumed."""
    size, columns = len(matrix), len(right[0])
    for k in range(size):
        pivot = max(range(k, size), key=lambda r: abs(matrix[r][k]))
        matrix[k], matrix[pivot] = matrix[pivot], matrix[k]
        right[k], right[pivot] = right[pivot], right[k]
        for r in range(size):
            if r == k:
                continue
            factor = matrix[r][k] / matrix[k][k]
            for c in range(k, size):
                matrix[r][c] -= factor * matrix[k][c]
            for c in range(columns):
                right[r][c] -= factor * right[k][c]
    return [[right[r][c] / matrix[r][r] for c in range(columns)] for r in range(size)]


def closed_form(features: Tensor, y: Tensor, classes: int, ridge: float = 0.0) -> Tensor:
    """Solve (H^T H + ridge I) W = H^T Y over all samples: (P, Z).

    The ridge is added to the sums over samples, not to their means, and Y is one-hot.
    """
    h = flatten(features).tolist()
    labels = one_hot(y, classes).tolist()
    samples, inputs = len(h), len(h[0])
    gram = [
        [sum(h[n][a] * h[n][b] for n in range(samples)) + (ridge if a == b else 0.0) for b in range(inputs)]
        for a in range(inputs)
    ]
    right = [[sum(h[n][a] * labels[n][z] for n in range(samples)) for z in range(classes)] for a in range(inputs)]
    return torch.tensor(solve(gram, right), dtype=torch.float64)


# ---------------------------------------------------------------- prediction


def predictions(logits: Tensor, normalise: Normalise) -> Tensor:
    rows = []
    for n in range(logits.shape[0]):
        z = logits[n].detach()
        if normalise == "sparsemax":
            rows.append(sparsemax(z))
        elif normalise == "softmax":
            normaliser = logsumexp([z[i] for i in range(z.shape[0])])
            rows.append(torch.stack([torch.exp(z[i] - normaliser) for i in range(z.shape[0])]))
        else:
            rows.append(z)
    return torch.stack(rows)


def cascade_prediction(logits: Sequence[Tensor], normalise: Normalise = "softmax") -> Tensor:
    """(N, Z): the blocks' softmax (or sparsemax) outputs added up, to be read by argmax."""
    result = torch.zeros_like(logits[0])
    for block_logits in logits:
        result = result + predictions(block_logits, normalise)
    return result


# ---------------------------------------------------------------- steps


def cascaded_step(
    blocks: list[Block], params: Groups, predictors: Sequence[Tensor], x: Tensor, y: Tensor, *, loss: Loss = "ce"
) -> CascadedStep:
    """Score every block's predictor on the output of frozen blocks."""
    losses, all_logits, predictor_gradients = [], [], []
    for i in range(len(blocks)):
        x = blocks[i](x, params[i]).detach()
        [weight] = _leaves([predictors[i]])
        logits = predictor_logits(x, weight)
        value = predictor_loss(logits, y, loss)
        losses.append(value.detach())
        all_logits.append(logits.detach())
        predictor_gradients.extend(_gradients(value, [weight]))
    return CascadedStep(losses, all_logits, predictor_gradients, [[] for _ in blocks])


def cascaded_dfa_step(
    blocks: list[Block],
    params: Groups,
    predictors: Sequence[Tensor],
    feedback: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss = "ce",
) -> CascadedStep:
    """Train every block too: delta_l = e_l B_l at the block's output, e_l the error of its own predictor.

    e_l = (prediction - onehot) / N and B_l is (Z, *shape of a sample of h_l). The predictor is trained as without
    DFA; h_l goes on detached.
    """
    losses, all_logits, predictor_gradients, gradients = [], [], [], []
    for i in range(len(blocks)):
        theta = _leaves(params[i])
        h = blocks[i](x.detach(), theta)
        [weight] = _leaves([predictors[i]])
        logits = predictor_logits(h.detach(), weight)
        value = predictor_loss(logits, y, loss)
        error = output_error(logits, y, loss)
        flat, backward = flatten(h), feedback[i].reshape(feedback[i].shape[0], -1)
        pushed = []
        for n in range(flat.shape[0]):
            for j in range(flat.shape[1]):
                delta = total([error[n, z] * backward[z, j] for z in range(backward.shape[0])])
                pushed.append(flat[n, j] * delta)
        losses.append(value.detach())
        all_logits.append(logits.detach())
        predictor_gradients.extend(_gradients(value, [weight]))
        gradients.append(_gradients(total(pushed), theta))
        x = h
    return CascadedStep(losses, all_logits, predictor_gradients, gradients)
