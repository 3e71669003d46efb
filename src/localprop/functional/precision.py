"""Where half precision ends, and what is too small to count."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def at_least_single(h: Tensor) -> Tensor:
    """Return `h` in at least float32: logits and averages of half precision lose too many digits."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[None, None]:
    """Switch autocast off inside, on the device of `x`."""
    return autocast(x.device, None)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None, None]:
    """Switch autocast to `dtype` inside, or off, where the device has it (that of shapes alone has none)."""
    if dtype is None and not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def under_autocast(x: Tensor) -> bool:
    """Tell whether autocast is on, on the device of `x`."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@contextlib.contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Take numbers below 1e-38 for 0 inside, on a CPU that can.

    What a block is sure of has such gradients, and a CPU multiplies them a hundred times slower. Threads have the
    setting from the one that starts them, so this must come before the first operation that is shared between threads.
    """
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
