"""Measurements in this process: time in interleaved rounds, arithmetic, memory. They want a fresh process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from localprop.bench.live import LiveTensors
from localprop.bench.memory import PeakMemory
from localprop.bench.subjects import Step, Subject
from localprop.train.assemble import wait_for

WARM_UP_ROUNDS = 2
MIN_ROUNDS, MAX_ROUNDS = 7, 40
TURN_SECONDS = 0.5
MEMORY_STEPS = 3


@dataclass(frozen=True)
class Timing:
    """Times of a subject's steps, one a round.

    Attributes:
        name: Of the subject.
        seconds: A step in each round, the mean of its turn; with phases, their steps weighted by their shares of a run.
        flops: Floating point operations of a step, counted by PyTorch: those of convolutions and matrix products.
    """

    name: str
    seconds: tuple[float, ...]
    flops: float


def time_steps(
    subjects: Sequence[Subject], *, seconds: float, rounds: tuple[int, int] = (MIN_ROUNDS, MAX_ROUNDS)
) -> list[Timing]:
    """Time steps of every subject in turn, round after round, so that all meet the same machine.

    A turn is one step, or as many as half a second takes: a step finds memory as the step before left it, and in
    training that is one of its own kind.

    Args:
        subjects: What is timed.
        seconds: Time to spend, within the bounds of `rounds`.
        rounds: Least and largest number of rounds that count.
    """
    ready = [subject.start() for subject in subjects]
    device = subjects[0].batch[0].device
    flops = [sum(share * _flops(step) for share, step in steps) for steps in ready]  # also the first warm-up
    turns = [[(share, step, _turn(timed(step, device))) for share, step in steps] for steps in ready]  # and the second
    taken = in_rounds([partial(_weighted, steps, device) for steps in turns], seconds=seconds, rounds=rounds)
    return [
        Timing(subject.name, tuple(times), count) for subject, times, count in zip(subjects, taken, flops, strict=True)
    ]


def in_rounds(
    measurements: Sequence[Callable[[], float]], *, seconds: float, rounds: tuple[int, int]
) -> list[list[float]]:
    """Take measurements in turn, round after round, so that all meet the same machine.

    Args:
        measurements: Each takes one and returns it.
        seconds: Time to spend, within the bounds of `rounds`.
        rounds: Least and largest number of rounds.

    Returns:
        What each of them returned, round by round.
    """
    taken: list[list[float]] = [[] for _ in measurements]
    started = time.perf_counter()
    while len(taken[0]) < rounds[0] or (time.perf_counter() - started < seconds and len(taken[0]) < rounds[1]):
        for numbers, measure in zip(taken, measurements, strict=True):
            numbers.append(measure())
    return taken


def time_row(own: Timing, backprop: Timing) -> dict[str, Any]:
    """Compare two timings of the same rounds.

    Returns:
        Medians in seconds; `step_ratio`, the median over rounds of own / backprop, with its quartiles;
        `floor_ratio`, the same for counted arithmetic, and how far the time is above it.
    """
    ratios = [mine / theirs for mine, theirs in zip(own.seconds, backprop.seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    step_ratio, floor_ratio = statistics.median(ratios), own.flops / backprop.flops
    return {
        "threads": torch.get_num_threads(),
        "step_seconds": statistics.median(own.seconds),
        "backprop_step_seconds": statistics.median(backprop.seconds),
        "step_ratio": step_ratio,
        "step_ratio_spread": [quartiles[0], quartiles[2]],
        "floor_ratio": floor_ratio,
        "step_ratio_to_floor": step_ratio / floor_ratio,
        "pairs": len(ratios),
    }


def measure_memory(subject: Subject) -> dict[str, int]:
    """Measure how memory grows over three steps, from before the optimisers are built.

    Returns:
        `peak_memory_bytes`: growth of the resident set, or of what the accelerator's allocator holds;
        `live_tensor_bytes`: the most bytes of new tensors that were alive at once.
    """
    resident = PeakMemory(subject.batch[0].device)
    live = LiveTensors([*subject.module.parameters(), *subject.module.buffers(), *subject.batch])
    with live:
        for _, step in subject.start() * MEMORY_STEPS:
            step()
    return {"peak_memory_bytes": resident.peak(), "live_tensor_bytes": live.peak_bytes}


def _flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _turn(step_seconds: float) -> int:
    """Return how many steps a turn has."""
    return max(1, math.ceil(TURN_SECONDS / step_seconds))


def _weighted(steps: Sequence[tuple[float, Step, int]], device: torch.device) -> float:
    return sum(share * timed(step, device, times=turn) for share, step, turn in steps)


def timed(step: Step, device: torch.device, *, times: int = 1) -> float:
    """Return the seconds that a call takes, until the device has done what it was told to do; the mean of `times`."""
    wait_for(device)
    started = time.perf_counter()
    for _ in range(times):
        step()
    wait_for(device)
    return (time.perf_counter() - started) / times
