"""Weighted sums over the predictions of all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Weights = Literal["uniform", "linear", "exponential"]
WEIGHTS: tuple[Weights, ...] = ("uniform", "linear", "exponential")


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


def ensemble_probabilities(exits: Sequence[Tensor | None], kind: Weights) -> Tensor:
    """Sum the blocks' class probabilities with weights: p_n = sum_l w_l softmax(logits_{l,n}).

    Blocks without a prediction are left out; l is the block's place in the whole network.

    Args:
        exits: Logits of every block, or None. Shape (N, Z) each.
        kind: See `ensemble_weights`.

    Shape: (N, Z); rows sum to 1.

    Raises:
        ValueError: No block makes a prediction.
    """
    pairs = [
        (weight, logits)
        for weight, logits in zip(ensemble_weights(len(exits), kind), exits, strict=True)
        if logits is not None
    ]
    if not pairs:
        raise ValueError("ensemble: no block makes a prediction")
    total = sum(weight for weight, _ in pairs)
    return torch.stack([weight / total * logits.softmax(1) for weight, logits in pairs]).sum(0)
