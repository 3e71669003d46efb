"""A curriculum: training begins with a part of the images, the easiest or the hardest, which grows to all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pacing = Literal["linear", "exponential"]

START = 0.2
"""Share of the images that training begins with."""
FULL = 0.5
"""Progress of the run from which on all images are drawn."""


@dataclass(frozen=True, eq=False)
class Curriculum:
    """Which images may be drawn at a step: the first k = ceil(f(p) N) of an order, at progress p = step / steps.

    linear: f(p) = 0.2 + 0.8 p / 0.5; exponential: f(p) = 0.2^(1 - p / 0.5); both 1 from p = 0.5 on.

    Attributes:
        order: Numbers of the images, those that come first first. Shape (N,), int64.
        pacing: The form of f.
        num_batches: Batches of the run.

    References: Hacohen and Weinshall, "On The Power of Curriculum Learning in Training Deep Networks", ICML 2019,
        arXiv:1904.03626. Bakhtiarnia et al., "Improving the Accuracy of Early Exits in Multi-Exit Architectures via
        Curriculum Learning", 2021, arXiv:2104.10461.
    """

    order: Tensor
    pacing: Pacing
    num_batches: int

    def pool(self, step: int) -> Tensor | None:
        """Return the images that may be drawn at a step; None if all may."""
        progress = step / self.num_batches / FULL
        if progress >= 1:
            return None
        share = START + (1 - START) * progress if self.pacing == "linear" else START ** (1 - progress)
        return self.order[: math.ceil(share * len(self.order))]


def order_of(difficulty: Tensor, labels: Tensor, *, hardest_first: bool) -> Tensor:
    """Order images by their difficulty among those of their class, so that any first part holds all classes alike.

    Image i of a class of n images comes at the quantile (rank_i + 1/2) / n.

    Args:
        difficulty: A number an image, larger is harder. Shape (N,).
        labels: Class indices. Shape (N,).
        hardest_first: Whether to turn the order round.

    Shape: (N,), int64; ties keep the order of the images.

    Raises:
        ValueError: A difficulty is not a number.
    """
    if difficulty.isnan().any():
        raise ValueError(
            "curriculum: the difficulty of some image is not a number; choose another run to measure it by"
        )
    quantile = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.bincount(labels).nonzero().squeeze(1):
        members = (labels == label).nonzero().squeeze(1)
        ranked = members[difficulty[members].argsort(stable=True, descending=hardest_first)]
        quantile[ranked] = (torch.arange(len(ranked), dtype=torch.float64) + 0.5) / len(ranked)
    return quantile.argsort(stable=True)
