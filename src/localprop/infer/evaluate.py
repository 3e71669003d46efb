"""Errors of every block, of the network's answer and of weighted sums over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.infer.ensemble import LEARNED, WEIGHTS, ensemble_probabilities, ensemble_weights
from localprop.rules.base import Rule


@dataclass(frozen=True)
class Evaluation:
    """Errors in percent.

    Attributes:
        error: Of the network's answer.
        layer_errors: Of every block; None where a block makes no prediction.
        ensemble_errors: Of the weighted sums over blocks, by kind of weights.
        num_images: How many images were seen.
    """

    error: float
    layer_errors: tuple[float | None, ...]
    ensemble_errors: dict[str, float]
    num_images: int


def evaluate(
    rule: Rule, batches: Iterable[tuple[Tensor, Tensor]], learned: Sequence[float] | None = None
) -> Evaluation:
    """Measure the errors of a rule in evaluation mode, and put back the mode it was in.

    Args:
        rule: The trained rule.
        batches: Pairs of inputs (N, ...) and labels (N,).
        learned: Weights of the blocks that were learned on other images, for one weighted sum more.

    Raises:
        ValueError: There are no batches.
    """
    kinds: dict[str, Sequence[float]] = {kind: ensemble_weights(len(rule.net), kind) for kind in WEIGHTS}
    kinds |= {} if learned is None else {LEARNED: learned}
    training = rule.training
    rule.eval()
    blocks: list[Tensor | None] = [None] * len(rule.net)
    sums: dict[str, Tensor] = {}
    answers = torch.zeros((), dtype=torch.int64)
    num_images = 0
    try:
        with torch.no_grad():
            for x, y in batches:
                num_images += len(y)
                exits = rule.exits(x)
                answers = (rule.answer(exits).argmax(1) != y).sum() + answers
                for index, logits in enumerate(exits):
                    if logits is not None:
                        wrong = (logits.argmax(1) != y).sum()
                        before = blocks[index]
                        blocks[index] = wrong if before is None else wrong + before
                for kind, weights in kinds.items():
                    wrong = (ensemble_probabilities(exits, weights).argmax(1) != y).sum()
                    sums[kind] = wrong + sums[kind] if kind in sums else wrong
    finally:
        rule.train(training)
    if not num_images:
        raise ValueError("batches: nothing to evaluate on, the set is empty")
    layer_errors = tuple(None if count is None else percent(int(count), num_images) for count in blocks)
    return Evaluation(
        percent(int(answers), num_images),
        layer_errors,
        {kind: percent(int(count), num_images) for kind, count in sums.items()},
        num_images,
    )


def percent(count: int, total: int) -> float:
    """Return 100 count / total, rounded to what a count can tell."""
    return round(100.0 * count / total, 6)
