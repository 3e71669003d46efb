"""AdamW on a list of numbers, and learning-rate factors as functions of the run's progress in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence


def adamw_step(
    values: Sequence[float],
    gradients: Sequence[float],
    first_moments: Sequence[float],
    second_moments: Sequence[float],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[list[float], list[float], list[float]]:
    """Return (values, first moments, second moments) after update number `step`, counted from 1."""
    beta1, beta2 = betas
    new_values, new_first, new_second = [], [], []
    for i in range(len(values)):
        m = beta1 * first_moments[i] + (1 - beta1) * gradients[i]
        v = beta2 * second_moments[i] + (1 - beta2) * gradients[i] ** 2
        m_unbiased = m / (1 - beta1**step)
        v_unbiased = v / (1 - beta2**step)
        decayed = values[i] - lr * weight_decay * values[i]
        new_values.append(decayed - lr * m_unbiased / (math.sqrt(v_unbiased) + eps))
        new_first.append(m)
        new_second.append(v)
    return new_values, new_first, new_second


def multistep(progress: float, milestones: Sequence[float], gamma: float) -> float:
    """Multiply by gamma at every milestone, itself included."""
    factor = 1.0
    for milestone in milestones:
        if progress >= milestone:
            factor *= gamma
    return factor


def cosine(progress: float, warmup: float = 0.0, final: float = 0.0) -> float:
    """Rise from 0 to 1 in a line over the first `warmup`, then fall to `final` along half a cosine."""
    if progress < warmup:
        return progress / warmup
    if warmup >= 1.0:
        return 1.0
    phase = (progress - warmup) / (1.0 - warmup)
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * phase)) / 2.0


def linear(progress: float) -> float:
    """Fall from 1 to 0 in a line."""
    return 1.0 - progress
