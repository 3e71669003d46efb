"""What is measured: a method's training step, and the steps that a person would write by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from localprop.functional.precision import autocast
from localprop.fusing import run_fused
from localprop.train.assemble import (
    PRECISIONS,
    DataFacts,
    build_executor,
    build_rule,
    in_layout,
    optimizer_factory,
    resolve_device,
)
from localprop.train.components import Component
from localprop.train.config import RunConfig
from localprop.train.phases import inputs_of, step_in
from localprop.types import Phase

Step = Callable[[], object]
Forward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A network and a batch, ready for training steps.

    Attributes:
        name: Of the method or the baseline.
        module: Holds every parameter and buffer.
        batch: What the steps are given.
        start: Builds the optimisers, and returns the steps with their shares of a run (one, or one for each phase).
    """

    name: str
    module: nn.Module
    batch: tuple[Tensor, Tensor]
    start: Callable[[], list[tuple[float, Step]]]


def method(config: RunConfig, facts: DataFacts) -> Subject:
    """Build a method's network and batch."""
    device = resolve_device(config.device)
    rule = build_rule(config, facts, device).train()
    x, y = _batch(config, facts, device)
    x = in_layout(x, rule)

    def start() -> list[tuple[float, Step]]:
        executor = build_executor(config, rule)
        numbers = iter(range(sys.maxsize))

        def step_of(phase: Phase) -> Step:
            return lambda: step_in(phase, executor, next(numbers), inputs_of(phase, rule, x), y)

        return [(phase.fraction, step_of(phase)) for phase in rule.phases() if phase.fraction]

    return Subject(config.method.name, rule, (x, y), start)


def baseline(name: str, config: RunConfig, facts: DataFacts) -> Subject:
    """Build backprop as a person would write it: the same network, layout, optimiser and precision, no localprop.

    Args:
        name: "bp", or one of `BASELINES`.
        config: A run; its method plays no part.
        facts: Shape of the images and number of classes.
    """
    device = resolve_device(config.device)
    if name == "bp-bf16":
        config = replace(config, precision="bf16")
    forward = BASELINES[name]
    rule = build_rule(replace(config, method=Component("bp")), facts, device).train()
    if rule.net.runs_whole and forward is not _plain:
        raise ValueError(f"baselines: {name} runs block by block, which this network cannot; leave it out")
    model = rule.net if rule.net.runs_whole else nn.Sequential(*rule.net.blocks)
    x, y = _batch(config, facts, device)
    x = in_layout(x, rule)
    dtype = PRECISIONS[config.precision]

    def start() -> list[tuple[float, Step]]:
        make = optimizer_factory(config.optimizer.name, dict(config.optimizer.settings))
        optimizer = make(list(model.parameters()))

        def step() -> None:
            with autocast(device, dtype):
                loss = F.cross_entropy(forward(model, x), y)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return [(1.0, step)]

    return Subject(name, model, (x, y), start)


def _plain(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


def _checkpointed(model: nn.Sequential, x: Tensor) -> Tensor:
    for block in model:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def _checkpointed_by_square_root(model: nn.Sequential, x: Tensor) -> Tensor:
    length = math.isqrt(len(model) - 1) + 1
    for start in range(0, len(model), length):
        x = checkpoint(model[start : start + length], x, use_reentrant=False)
    return x


def _fused(model: nn.Sequential, x: Tensor) -> Tensor:
    for block in model:
        x = run_fused(block, x)
    return x


BASELINES: Mapping[str, Forward] = {
    "bp": _plain,
    "bp-checkpoint": _checkpointed,
    "bp-sqrt": _checkpointed_by_square_root,
    "bp-bf16": _plain,
    "bp-fused": _fused,
}
"""Ways to write backprop; all but the first are there on request."""


def _batch(config: RunConfig, facts: DataFacts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make a batch of noise as images in [0, 1] become inputs: arithmetic and memory do not depend on the pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(config.batch_size, *facts.image_shape, generator=generator)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    x = (images - mean) / std
    y = torch.randint(len(facts.class_names), (config.batch_size,), generator=generator)
    return x.to(device), y.to(device)
