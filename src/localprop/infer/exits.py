"""Early exits: a sample is answered by the first block that is sure of it, and no later block runs on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from localprop.functional.calibration import Measure, certainty
from localprop.rules.base import Rule


@dataclass(frozen=True)
class ExitPolicy:
    """When a sample leaves: at the first block whose certainty of it is at least the threshold.

    Attributes:
        measure: What certainty is; see `localprop.functional.calibration.certainty`.
        threshold: One for all blocks: 0 lets all leave at the first one that makes a prediction, infinity none at all,
            and the exits of hidden blocks are not computed then.
        temperatures: T of every block's logits; those of blocks that make no prediction are not read.
    """

    measure: Measure
    threshold: float
    temperatures: tuple[float, ...]

    def leaves(self, block: int, logits: Tensor) -> Tensor:
        """Tell which samples leave at a block, shape (N,); one whose logits are NaN goes on."""
        return certainty(logits, self.measure, self.temperatures[block]) >= self.threshold


class EarlyAnswer(NamedTuple):
    """What early exits answer.

    Attributes:
        logits: Of the block at which a sample left, or the network's answer. Shape (N, Z).
        blocks: The index of that block. Shape (N,), int64.
    """

    logits: Tensor
    blocks: Tensor


def predict_early(rule: Rule, x: Tensor, policy: ExitPolicy) -> EarlyAnswer:
    """Run block after block, and after each go on with the samples that have not left.

    In evaluation mode the answers are those of `choose_exits` on the exits of all blocks, but for rounding: a block
    runs on fewer samples, and kernels may add up in another order for another batch size.

    Args:
        rule: A trained rule, in evaluation mode, whose exits can be had one after another.
        x: Inputs, N >= 1.
        policy: When a sample leaves.

    Raises:
        ValueError: The rule cannot exit early or is in training mode, or the batch is empty or does not fit.
    """
    if rule.training:
        raise ValueError("rule: is in training mode, where a sample's answer depends on its batch; use rule.eval()")
    if len(x) == 0:
        raise ValueError("x: the batch is empty")
    last = len(rule.net) - 1
    rows = torch.arange(len(x), device=x.device)
    blocks = torch.full_like(rows, last)
    done: list[tuple[Tensor, Tensor]] = []
    seen: list[tuple[Tensor, Tensor | None]] = []
    with torch.no_grad():
        for block in range(last + 1):
            h, x = rule.run_block(block, x)
            reads = block == last or rule.answers_together or policy.threshold < math.inf
            logits = rule.exit_logits(block, h) if reads else None
            seen.append((rows, logits))
            if logits is None or block == last or policy.threshold == math.inf:
                continue
            leaves = policy.leaves(block, logits)
            stays = (~leaves).nonzero().squeeze(1)
            if len(stays) == len(rows):
                continue
            gone = rows[leaves]
            blocks[gone] = block
            done.append((gone, logits[leaves]))
            if len(stays) == 0:
                break
            rows, x = rows[stays], x[stays]
        else:
            done.append((rows, _answer(rule, seen)))
    logits = torch.cat([found for _, found in done])
    return EarlyAnswer(torch.empty_like(logits).index_copy_(0, torch.cat([gone for gone, _ in done]), logits), blocks)


def _answer(rule: Rule, seen: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Return the network's answer for the samples of the last block, given the exits of those that each block saw."""
    rows, last = seen[-1]
    if not rule.answers_together:
        return rule.answer([last])
    return rule.answer(
        [None if logits is None else logits[torch.searchsorted(before, rows)] for before, logits in seen]
    )


def choose_exits(exits: Sequence[Tensor | None], policy: ExitPolicy) -> EarlyAnswer:
    """Choose the answers of early exits after the exits of all blocks were computed.

    Args:
        exits: Logits of every block, or None; in the place of the last block's, the network's answer. Shape (N, Z).
        policy: When a sample leaves.
    """
    answer = exits[-1]
    assert answer is not None
    logits, blocks = answer.clone(), torch.full((len(answer),), len(exits) - 1, device=answer.device)
    waiting = torch.ones(len(answer), dtype=torch.bool, device=answer.device)
    for block, own in enumerate(exits[:-1]):
        if own is not None:
            leaving = waiting & policy.leaves(block, own)
            logits[leaving], blocks[leaving] = own[leaving], block
            waiting &= ~leaving
    return EarlyAnswer(logits, blocks)


def check_early_exits(rule: Rule, x: Tensor) -> None:
    """Refuse a rule that has no block to exit from early, with the reason.

    Args:
        rule: The rule, in evaluation mode.
        x: A batch of inputs; one sample is enough.

    Raises:
        ValueError: Says why.
    """
    if len(rule.net) == 1:
        raise ValueError("exits: the network has one block, so there is none to leave it at early")
    for block in range(len(rule.net) - 1):
        h, x = rule.run_block(block, x)
        if rule.exit_logits(block, h) is not None:
            return
    raise ValueError(f"exits: {type(rule).__name__} cannot exit early: hidden blocks make no prediction of their own")
