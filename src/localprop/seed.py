"""Derived seeds and a scope that leaves the random state as it found it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, *path: int | str) -> int:
    """Derive a seed from a run's seed and the place where it is used.

    The first 63 bits of SHA-256 over (seed, *path): stable over processes, platforms and versions, and independent
    for different places, so that no draw depends on how many draws were made before it.

    Args:
        seed: The run's seed.
        path: Names and numbers of the place, such as ("dropout", step, block).
    """
    digest = hashlib.sha256(repr((int(seed), *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from `seed` inside, on the host and on `device`; give back the random state of before on leaving."""
    on_host = device.type in ("cpu", "meta")  # nothing is drawn on meta, which holds no numbers
    with torch.random.fork_rng(devices=[] if on_host else [device.index or 0], device_type=device.type):
        # Not torch.manual_seed: it would also reseed devices whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        if not on_host:
            torch.get_device_module(device).manual_seed(seed)
        yield
