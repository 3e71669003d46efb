"""Weighted sums over the predictions of all blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from localprop.rules.base import Rule

Weights = Literal["uniform", "linear", "exponential"]
WEIGHTS: tuple[Weights, ...] = ("uniform", "linear", "exponential")
LEARNED = "learned"
"""Weights that are fitted to held-out images."""

_MOST_ROUNDS = 10_000


def ensemble_weights(num_blocks: int, kind: Weights) -> list[float]:
    """Return the weights of blocks l = 1 .. L, which sum to 1.

    uniform: w_l = 1 / L; linear: w_l proportional to l; exponential: w_l proportional to 2^l.

    Raises:
        ValueError: An unknown kind.

    References: Belilovsky et al., "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019 (the weights 2^l).
    """
    if kind not in WEIGHTS:
        raise ValueError(f"ensemble: must be one of {', '.join(WEIGHTS)}, got {kind!r}")
    raw = {
        "uniform": [1.0] * num_blocks,
        "linear": [float(block + 1) for block in range(num_blocks)],
        "exponential": [2.0 ** (block + 1 - num_blocks) for block in range(num_blocks)],
    }[kind]
    total = sum(raw)
    return [weight / total for weight in raw]


def ensemble_probabilities(exits: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    """Sum the blocks' class probabilities with weights: p_n = sum_l w_l softmax(logits_{l,n}).

    Blocks without a prediction are left out, and the weights of the others scaled to sum to 1.

    Args:
        exits: Logits of every block, or None. Shape (N, Z) each.
        weights: w_l of every block, at least 0.

    Shape: (N, Z); rows sum to 1.

    Raises:
        ValueError: No block makes a prediction.
    """
    pairs = [(weight, logits) for weight, logits in zip(weights, exits, strict=True) if logits is not None]
    if not pairs:
        raise ValueError("ensemble: no block makes a prediction")
    total = sum(weight for weight, _ in pairs)
    return torch.stack([weight / total * logits.softmax(1) for weight, logits in pairs]).sum(0)


def learn_weights(rule: Rule, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Fit the weights of all blocks to images that the rule was not trained on; see `mixture_weights`.

    Args:
        rule: The rule, in evaluation mode.
        batches: Pairs of inputs (N, ...) and labels (N,).

    Returns:
        One weight a block, 0 for those that make no prediction.
    """
    found = []
    with torch.no_grad():
        for x, y in batches:
            exits = rule.exits(x)
            silent = torch.zeros(len(y), device=y.device)
            likelihoods = [
                silent if logits is None else logits.float().softmax(1).gather(1, y[:, None]).squeeze(1)
                for logits in exits
            ]
            found.append(torch.stack(likelihoods, 1))
    return [float(weight) for weight in mixture_weights(torch.cat(found).double().cpu())]


def mixture_weights(likelihoods: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """Return the convex weights of largest likelihood: argmax_w sum_n log sum_l w_l p_l(y_n), w_l >= 0, sum_l w_l = 1.

    Expectation maximisation, w_l <- mean_n w_l p_l(y_n) / sum_k w_k p_k(y_n), from equal weights; the problem is
    concave, so it ends at the best weights.

    Args:
        likelihoods: p_l(y_n), what block l gives the true label of sample n. Shape (N, L). Samples that no block gives
            anything are left out.
        tolerance: Largest move of a weight in the last round.

    Shape: (L,), in the dtype of `likelihoods`.

    Raises:
        ValueError: No sample is left.

    References: Jordan and Jacobs, "Hierarchical Mixtures of Experts and the EM Algorithm", Neural Computation 1994.
    """
    possible = likelihoods[likelihoods.sum(1) > 0]
    if not len(possible):
        raise ValueError("ensemble: no block gives any held-out image's label a probability; weights cannot be learned")
    predicts = (possible > 0).any(0).to(possible.dtype)
    weights = predicts / predicts.sum()
    for _ in range(_MOST_ROUNDS):
        shares = weights * possible
        moved = (shares / shares.sum(1, keepdim=True)).mean(0)
        if float((moved - weights).abs().max()) <= tolerance:
            return moved
        weights = moved
    return weights
