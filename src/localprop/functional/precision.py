"""Where half precision ends."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_single(h: Tensor) -> Tensor:
    """Return `h` in at least float32: logits and averages of half precision lose too many digits."""
    return h.to(torch.promote_types(h.dtype, torch.float32))
