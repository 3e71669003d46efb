"""Where half precision ends."""

from __future__ import annotations

import contextlib
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
