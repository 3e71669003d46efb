"""What training takes, apart from evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from localprop.train.assemble import wait_for


class Stopwatch:
    """Measure the steps of training, and the time in all.

    Args:
        device: What the steps run on.

    Attributes:
        step_seconds: Of every step.
        train_seconds: Of steps, and of what is done between phases.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0
        self._unsettled = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step; on a device that works on its own, until it was told what to do (see `settle`)."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.step_seconds.append(seconds)
        self.train_seconds += seconds
        self._unsettled += 1

    @contextmanager
    def between(self) -> Iterator[None]:
        """Measure what is part of training, but no step."""
        started = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - started

    def settle(self) -> None:
        """Wait for a device that works on its own, and spread the time over the steps that it was busy with."""
        count, self._unsettled = self._unsettled, 0
        if self.device.type == "cpu" or count == 0:
            return
        started = time.perf_counter()
        wait_for(self.device)
        waited = time.perf_counter() - started
        self.train_seconds += waited
        self.step_seconds[-count:] = [(sum(self.step_seconds[-count:]) + waited) / count] * count
