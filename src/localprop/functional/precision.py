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
    """Switch autocast off inside, on the device of `x`, where the device has it (that of shapes alone has none)."""
    if not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
