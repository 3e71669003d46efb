"""What early exits would answer and cost, threshold by threshold, from the recorded exits of all blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from localprop.functional.calibration import Measure, certainty
from localprop.infer.evaluate import percent
from localprop.rules.base import Rule

MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class Recorded:
    """The exits of every block over a set of images, on the host.

    Attributes:
        exits: Logits of every block, or None; in the place of the last block's, the network's answer. Shape (N, Z).
        y: Class indices. Shape (N,).
    """

    exits: tuple[Tensor | None, ...]
    y: Tensor

    @property
    def answer(self) -> Tensor:
        """The network's answer, shape (N, Z)."""
        answer = self.exits[-1]
        assert answer is not None
        return answer


def record_exits(rule: Rule, batches: Iterable[tuple[Tensor, Tensor]]) -> Recorded:
    """Compute the exits of every block over a set of images.

    Args:
        rule: The rule, in evaluation mode.
        batches: Pairs of inputs (N, ...) and labels (N,).

    Raises:
        ValueError: There are no batches.
    """
    found: list[list[Tensor | None]] = []
    labels = []
    with torch.no_grad():
        for x, y in batches:
            exits = rule.exits(x)
            found.append([None if logits is None else logits.cpu() for logits in [*exits[:-1], rule.answer(exits)]])
            labels.append(y.cpu())
    if not labels:
        raise ValueError("batches: no images to compute exits of, the set is empty")
    columns = []
    for block in zip(*found, strict=True):
        present = [logits for logits in block if logits is not None]
        columns.append(torch.cat(present) if present else None)
    return Recorded(tuple(columns), torch.cat(labels))


@dataclass(frozen=True)
class Arithmetic:
    """Floating point operations of one sample, as PyTorch counts them: those of convolutions and matrix products.

    Attributes:
        early: Of a sample that leaves at each block, the exits on its way included.
        whole: Of a sample in the whole network, without exits that its answer does not read.
    """

    early: tuple[int, ...]
    whole: int


def count_arithmetic(rule: Rule, x: Tensor) -> Arithmetic:
    """Count the operations of every block and exit.

    Args:
        rule: The rule, in evaluation mode, whose exits can be had one after another.
        x: One sample. Shape (1, ...).
    """
    total, early, unread = 0, [], 0
    for block in range(len(rule.net)):
        with FlopCounterMode(display=False) as counter:
            h, x = rule.run_block(block, x)
        total += counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            rule.exit_logits(block, h)
        total += counter.get_total_flops()
        if block < len(rule.net) - 1 and not rule.answers_together:
            unread += counter.get_total_flops()
        early.append(total)
    return Arithmetic(tuple(early), total - unread)


@dataclass(frozen=True)
class Outcome:
    """What a threshold gives on a set of images.

    Attributes:
        threshold: Least certainty to leave with; infinity is the whole network.
        error: Percent.
        shares: Share of the images that leave at every block.
        flops: Mean floating point operations of an image.
    """

    threshold: float
    error: float
    shares: tuple[float, ...]
    flops: float


class Sweep:
    """Tells what thresholds give on recorded exits, without running the network again.

    Args:
        recorded: The exits.
        measure: What certainty is.
        temperatures: T of every block.
        arithmetic: What leaving at each block costs.
    """

    def __init__(
        self, recorded: Recorded, measure: Measure, temperatures: Sequence[float], arithmetic: Arithmetic
    ) -> None:
        never = torch.full(recorded.y.shape, -1.0)
        self.arithmetic = arithmetic
        self._certainties = torch.stack(
            [
                never if logits is None else certainty(logits, measure, temperature)
                for logits, temperature in zip(recorded.exits[:-1], temperatures, strict=False)
            ]
        )
        answers = [recorded.answer if logits is None else logits for logits in recorded.exits]
        self._wrong = torch.stack([logits.argmax(1) != recorded.y for logits in answers])

    def at(self, threshold: float) -> Outcome:
        """Return what a threshold gives."""
        sure = self._certainties >= threshold
        blocks = torch.cat([sure, torch.ones_like(sure[:1])]).byte().argmax(0)  # the first that is sure
        wrong = self._wrong.gather(0, blocks[None])
        shares = torch.bincount(blocks, minlength=len(self._wrong)).double() / len(blocks)
        costs = torch.tensor(self.arithmetic.early, dtype=torch.float64)
        flops = self.arithmetic.whole if threshold == math.inf else float(shares @ costs)
        return Outcome(threshold, percent(int(wrong.sum()), len(blocks)), tuple(shares.tolist()), flops)

    def candidates(self) -> list[Outcome]:
        """Return the outcomes of thresholds from 0 to infinity: the certainties that occur, or evenly many of them."""
        occurring = sorted(set(self._certainties[self._certainties >= 0].tolist()))
        places = torch.linspace(0, len(occurring) - 1, min(len(occurring), MAX_CANDIDATES)).round().long()
        return [self.at(threshold) for threshold in [0.0, *(occurring[place] for place in places.tolist()), math.inf]]


def cheapest(candidates: Sequence[Outcome], max_error_increase: float) -> Outcome:
    """Return the outcome of least arithmetic whose error is at most that of the whole network and the increase.

    Args:
        candidates: Outcomes on held-out images; the last one is that of the whole network.
        max_error_increase: Points of error, 0 or more.

    Raises:
        ValueError: The increase is negative or not finite.
    """
    if not 0 <= max_error_increase < math.inf:
        raise ValueError(
            f"max_error_increase: must be 0 or more points of error, and finite, got {max_error_increase}; 0.5 is usual"
        )
    allowed = candidates[-1].error + max_error_increase + 1e-9  # errors are rounded percentages
    return min((one for one in candidates if one.error <= allowed), key=lambda one: (one.flops, one.error))


def spread(candidates: Sequence[Outcome], num_points: int) -> list[Outcome]:
    """Pick outcomes of finite thresholds, about evenly spread in arithmetic, each once, cheapest first."""
    finite = sorted((one for one in candidates if one.threshold < math.inf), key=lambda one: one.flops)
    least, most = finite[0].flops, finite[-1].flops
    wanted = [least + (most - least) * point / max(num_points - 1, 1) for point in range(num_points)]
    nearest = (min(finite, key=lambda one: abs(one.flops - flops)) for flops in wanted)
    return list({one.threshold: one for one in nearest}.values())
