"""Error messages that many places need."""

from __future__ import annotations

import difflib
import importlib
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


def check_installed(what: str, packages: Iterable[str], extra: str) -> None:
    """Refuse to begin what needs packages that are missing.

    Args:
        what: What needs them, as the user asked for it.
        packages: Names to import.
        extra: The extra of localprop that they belong to.

    Raises:
        ValueError: Names the missing ones and how to install them.
    """
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ValueError(f"{what}: needs {', '.join(missing)}; install with: pip install 'localprop[{extra}]'")


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a positive, finite number.

    Raises:
        ValueError: It is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: must be positive and finite, got {value}")
