"""Temperatures, calibration errors and early exits, in loops over floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def softmax(row: Row, temperature: float = 1.0) -> list[float]:
    top = max(row)
    weights = [math.exp((value - top) / temperature) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def slope(logits: Sequence[Row], y: Sequence[int], inverse: float) -> float:
    """Return the derivative of the mean NLL of softmax(inverse * logits) by `inverse`."""
    terms = []
    for row, label in zip(logits, y, strict=True):
        p = softmax(row, 1 / inverse) if inverse else [1 / len(row)] * len(row)
        terms.append(math.fsum(p[k] * row[k] for k in range(len(row))) - row[label])
    return math.fsum(terms) / len(terms)


def temperature(logits: Sequence[Row], y: Sequence[int]) -> float | None:
    """Bisect the slope, which rises with 1/T; None where it does not change its sign."""
    if all(row[label] >= max(row) for row, label in zip(logits, y, strict=True)) or slope(logits, y, 0.0) >= 0:
        return None
    low, high = 0.0, 1.0
    while slope(logits, y, high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if slope(logits, y, middle) < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def calibration_error(logits: Sequence[Row], y: Sequence[int], temperature: float = 1.0, num_bins: int = 15) -> float:
    right = [0] * num_bins
    sure = [0.0] * num_bins
    for row, label in zip(logits, y, strict=True):
        p = softmax(row, temperature)
        best = max(range(len(p)), key=lambda k: (p[k], -k))
        place = next(b for b in range(num_bins) if p[best] <= (b + 1) / num_bins or b == num_bins - 1)
        right[place] += best == label
        sure[place] += p[best]
    return math.fsum(abs(r - s) for r, s in zip(right, sure, strict=True)) / len(y)


def certainty(row: Row, measure: str, temperature: float = 1.0) -> float:
    p = sorted(softmax(row, temperature), reverse=True)
    if measure == "confidence":
        return p[0]
    if measure == "margin":
        return p[0] - p[1]
    return 1 + math.fsum(q * math.log(q) for q in p if q > 0) / math.log(len(p))


def first_sure(rows: Sequence[Row | None], measure: str, threshold: float, temperatures: Row) -> int:
    """Return the block at which one sample leaves, given its logits at every block; the last takes what is left."""
    for block, row in enumerate(rows[:-1]):
        if row is not None and certainty(row, measure, temperatures[block]) >= threshold:
            return block
    return len(rows) - 1
