"""Error messages that many places need."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the closest allowed name, whatever its case, or "" if none is close."""
    spellings: dict[str, list[str]] = {}
    for candidate in allowed:
        spellings.setdefault(candidate.lower(), []).append(candidate)
    matches = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.5)
    if not matches:
        return ""
    [closest] = difflib.get_close_matches(name, spellings[matches[0]], n=1, cutoff=0.0)
    return f" (did you mean {closest!r}?)"


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a positive, finite number.

    Raises:
        ValueError: It is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: must be positive and finite, got {value}")
