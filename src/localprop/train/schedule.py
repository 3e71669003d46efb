"""Learning-rate schedules: pure functions of the fraction of the run that is done, so nothing has to be restored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]
"""Maps progress in [0, 1) to the factor of the learning rate."""


def constant() -> Schedule:
    """Keep the learning rate."""
    return lambda progress: 1.0


def multistep(*, milestones: Sequence[float] = (0.5, 0.75, 0.89, 0.94), gamma: float = 0.25) -> Schedule:
    """Multiply the learning rate by `gamma` at every milestone: gamma ** #{m : progress >= m}.

    Args:
        milestones: Fractions of the run, increasing, in (0, 1).
        gamma: Factor, in (0, 1].

    Raises:
        ValueError: A setting out of its range.
    """
    points = tuple(milestones)
    if list(points) != sorted(set(points)) or any(not 0 < point < 1 for point in points):
        raise ValueError(f"schedule.milestones: must be increasing fractions of the run in (0, 1), got {list(points)}")
    if not 0 < gamma <= 1:
        raise ValueError(f"schedule.gamma: must be in (0, 1], got {gamma}")
    return lambda progress: gamma ** sum(progress >= point for point in points)


def cosine(*, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Rise linearly over the warm-up, then fall along half a cosine to `final`.

    With q = (progress - warmup) / (1 - warmup): final + (1 - final) (1 + cos(pi q)) / 2.

    Args:
        warmup: Fraction of the run, in [0, 1). The rate rises as progress / warmup.
        final: Factor at the end, in [0, 1].

    Raises:
        ValueError: A setting out of its range.
    """
    return _after_warmup(lambda q: final + (1 - final) * (1 + math.cos(math.pi * q)) / 2, warmup, final)


def linear(*, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Rise linearly over the warm-up, then fall linearly to `final`: 1 - (1 - final) q.

    Args:
        warmup: Fraction of the run, in [0, 1).
        final: Factor at the end, in [0, 1].

    Raises:
        ValueError: A setting out of its range.
    """
    return _after_warmup(lambda q: 1 - (1 - final) * q, warmup, final)


def _after_warmup(decay: Schedule, warmup: float, final: float) -> Schedule:
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup: must be a fraction of the run in [0, 1), got {warmup}")
    if not 0 <= final <= 1:
        raise ValueError(f"schedule.final: must be in [0, 1], got {final}")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return decay((progress - warmup) / (1 - warmup))

    return factor


CATALOGUE: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
    "linear": linear,
}
