"""Keep the state of an optimiser in host memory while it does not step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class OffloadedState:
    """Move an optimiser's state to its parameters' device before each step, and away after it.

    With one optimiser a block, the device holds the state of one block at a time: AdamW's is twice the weights. Moves
    are queued behind what the device computes, and the host memory is pinned, so that nothing waits for them.

    Args:
        optimizer: Its state may be empty yet.
        pin: Whether host memory is pinned, which takes an accelerator.

    Cost: A step moves the block's state there and back, 16 bytes a parameter for AdamW.
    """

    def __init__(self, optimizer: Optimizer, *, pin: bool = True) -> None:
        self._pin = pin
        self._host: dict[tuple[Tensor, str], Tensor] = {}
        optimizer.register_step_pre_hook(self._bring)
        optimizer.register_step_post_hook(self._take)

    def _bring(self, optimizer: Optimizer, *_: Any) -> None:
        for parameter, name, value in _offloadable(optimizer):
            optimizer.state[parameter][name] = value.to(parameter.device, non_blocking=True)

    def _take(self, optimizer: Optimizer, *_: Any) -> None:
        for parameter, name, value in _offloadable(optimizer):
            host = self._host.get((parameter, name))
            if host is None:
                host = torch.empty_like(value, device="cpu", pin_memory=self._pin)
                self._host[parameter, name] = host
            optimizer.state[parameter][name] = host.copy_(value, non_blocking=True)


def _offloadable(optimizer: Optimizer) -> list[tuple[Tensor, str, Tensor]]:
    """Return what is as large as a parameter, or a part of it; counters of steps stay where they are."""
    return [
        (parameter, name, value)
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor) and value.numel() > 1
    ]
