"""What a method costs beside backprop written by hand: time in interleaved pairs, memory in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.bench.memory import PeakMemory
from localprop.train.assemble import (
    PRECISIONS,
    DataFacts,
    build_executor,
    build_rule,
    in_layout,
    optimizer_factory,
    resolve_device,
)
from localprop.train.config import RunConfig
from localprop.train.errors import TrainingError
from localprop.train.phases import inputs_of, step_in, takes_steps
from localprop.types import Phase

Step = Callable[[Tensor, Tensor], None]
WARM_UP_PAIRS = 2
MIN_PAIRS, MAX_PAIRS = 7, 40
MEMORY_STEPS = 3


def measure(
    config: RunConfig, facts: DataFacts, *, seconds: float = 4.0, backprop_memory: int | None = None
) -> dict[str, Any]:
    """Measure one method beside backprop written by hand, each measurement in a fresh process.

    Args:
        config: The run whose method, network, batch size, optimiser, precision and threads are measured.
        facts: Shape of the images and number of classes.
        seconds: Time to spend on the timed pairs, beyond their minimum of 7.
        backprop_memory: Memory of backprop with the same settings if it is known already, in bytes.

    Returns:
        The rows of the bench contract: times are medians in seconds (a method with phases takes a step in each, by
        their shares of a run); `step_ratio` is the median over pairs of (method / backprop) and `step_ratio_spread`
        its quartiles; memory is the growth of the resident set over three steps after the network and the batch are
        there, before the optimiser is.

    Raises:
        ValueError: The method takes no steps.
        TrainingError: A measuring process failed; says what it said last.
    """
    if not takes_steps(build_rule(config, facts, torch.device("cpu")).phases()):
        raise ValueError(f"method: {config.method.name} takes no optimiser steps, so there is none to measure")
    time_row = _in_fresh_process(config, facts, "step", seconds)
    own = _in_fresh_process(config, facts, "memory", 0)["bytes"]
    backprop = backprop_memory or _in_fresh_process(config, facts, "backprop-memory", 0)["bytes"]
    return {
        "method": config.method.name,
        "model": config.model.name,
        "width": config.model.settings.get("width", 1.0),
        "batch_size": config.batch_size,
        "precision": config.precision,
        **time_row,
        "peak_memory_bytes": own,
        "backprop_peak_memory_bytes": backprop,
        "memory_ratio": own / backprop if backprop else None,
    }


def measure_step_ratio(config: RunConfig, facts: DataFacts, seconds: float) -> dict[str, Any]:
    """Time steps of the method and of backprop in turn, in this process."""
    device = resolve_device(config.device)
    x, y = _batch(config, facts, device)
    own_steps, own_x = _method_steps(config, facts, device, x)
    backprop_step, backprop_x = _hand_written_backprop(config, facts, device, x)
    own: list[float] = []
    backprop: list[float] = []
    started = time.perf_counter()
    while len(own) < WARM_UP_PAIRS + MIN_PAIRS or (
        time.perf_counter() - started < seconds and len(own) < WARM_UP_PAIRS + MAX_PAIRS
    ):
        own.append(sum(share * _timed(step, own_x, y, device) for share, step in own_steps))
        backprop.append(_timed(backprop_step, backprop_x, y, device))
    own, backprop = own[WARM_UP_PAIRS:], backprop[WARM_UP_PAIRS:]
    ratios = [mine / theirs for mine, theirs in zip(own, backprop, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "threads": torch.get_num_threads(),
        "step_seconds": statistics.median(own),
        "backprop_step_seconds": statistics.median(backprop),
        "step_ratio": statistics.median(ratios),
        "step_ratio_spread": [quartiles[0], quartiles[2]],
        "pairs": len(ratios),
    }


def measure_memory(config: RunConfig, facts: DataFacts, *, backprop: bool) -> int:
    """Measure the growth of memory over three steps, in this process, which must be fresh."""
    device = resolve_device(config.device)
    x, y = _batch(config, facts, device)
    if backprop:
        model = nn.Sequential(*build_rule(config, facts, device).net.blocks)
        memory = PeakMemory(device)
        step = _backprop_step(config, model)
    else:
        rule = build_rule(config, facts, device).train()
        x = in_layout(x, rule)
        memory = PeakMemory(device)
        executor = build_executor(config, rule)

        def step(x: Tensor, y: Tensor) -> None:
            for phase in rule.phases():
                if phase.fraction:
                    step_in(phase, executor, 0, inputs_of(phase, rule, x), y)

    for _ in range(MEMORY_STEPS):
        step(x, y)
    return memory.peak()


def _method_steps(
    config: RunConfig, facts: DataFacts, device: torch.device, x: Tensor
) -> tuple[list[tuple[float, Step]], Tensor]:
    """Return a step of every phase, with its share of the run's steps, and the batch in the network's layout."""
    rule = build_rule(config, facts, device).train()
    executor = build_executor(config, rule)
    numbers = iter(range(sys.maxsize))

    def step_of(phase: Phase) -> Step:
        def step(x: Tensor, y: Tensor) -> None:
            step_in(phase, executor, next(numbers), inputs_of(phase, rule, x), y)

        return step

    steps = [(phase.fraction, step_of(phase)) for phase in rule.phases() if phase.fraction]
    return steps, in_layout(x, rule)


def _hand_written_backprop(config: RunConfig, facts: DataFacts, device: torch.device, x: Tensor) -> tuple[Step, Tensor]:
    rule = build_rule(config, facts, device).train()
    return _backprop_step(config, nn.Sequential(*rule.net.blocks)), in_layout(x, rule)


def _backprop_step(config: RunConfig, model: nn.Module) -> Step:
    """Write out what a person would: the same network, layout, optimiser and precision, and three lines of PyTorch."""
    optimizer = optimizer_factory(config.optimizer.name, dict(config.optimizer.settings))(list(model.parameters()))
    dtype = PRECISIONS[config.precision]

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batch(config: RunConfig, facts: DataFacts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make a batch of noise as images in [0, 1] become inputs: arithmetic and memory do not depend on the pixels."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(config.batch_size, *facts.image_shape, generator=generator)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    x = (images - mean) / std
    y = torch.randint(len(facts.class_names), (config.batch_size,), generator=generator)
    return x.to(device), y.to(device)


def _timed(step: Step, x: Tensor, y: Tensor, device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    step(x, y)
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _in_fresh_process(config: RunConfig, facts: DataFacts, what: str, seconds: float) -> dict[str, Any]:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        order = json.dumps({"config": str(file), "facts": asdict(facts), "what": what, "seconds": seconds})
        command = [sys.executable, "-m", "localprop.bench", order]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise TrainingError(
            f"measuring {config.method.name} ({what}) ended with exit code {done.returncode} and said: {said[-1]}"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
