"""What methods cost beside backprop written by hand; each measurement in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from localprop import models
from localprop.bench.measure import MAX_ROUNDS, MIN_ROUNDS
from localprop.data import CATALOGUE
from localprop.train.assemble import DataFacts, build_rule
from localprop.train.components import Component
from localprop.train.config import RunConfig
from localprop.train.errors import TrainingError
from localprop.train.phases import takes_steps

Memory = dict[str, int]


def measure(config: RunConfig, facts: DataFacts, *, backprop: Memory, seconds: float = 4.0) -> dict[str, Any]:
    """Measure time and memory of one method beside backprop written by hand.

    Args:
        config: The run whose method, network, batch size, optimiser, precision and threads are measured.
        facts: Shape of the images and number of classes.
        backprop: What `memory_of` found for "bp" with the same settings.
        seconds: Time to spend on the timed pairs, beyond their minimum of 7.

    Returns:
        The rows of `step_rows` and `memory_row` in one.

    Raises:
        ValueError: The method takes no steps.
        TrainingError: A measuring process failed; says what it said last.
    """
    (time_row,) = step_rows([config], facts, seconds=seconds)
    return time_row | memory_row(config, facts, backprop)


def step_rows(
    configs: Sequence[RunConfig],
    facts: DataFacts,
    *,
    baselines: Sequence[str] = (),
    seconds: float,
    rounds: tuple[int, int] = (MIN_ROUNDS, MAX_ROUNDS),
) -> list[dict[str, Any]]:
    """Time steps of methods, of baselines and of backprop in turn, in one process.

    Args:
        configs: One a method, alike but for the method and what its recipe sets.
        facts: Shape of the images and number of classes.
        baselines: Names of `BASELINES`.
        seconds: Time to spend on the rounds, within their bounds.
        rounds: Least and largest number of rounds.

    Returns:
        One row a method, then one a baseline: times are medians in seconds (a method with phases takes a step in each,
        by their shares of a run); `step_ratio` is the median over rounds of (method / backprop), `step_ratio_spread`
        its quartiles; `floor_ratio` is the ratio of their arithmetic, which no implementation of either could beat by
        leaving out something else.

    Raises:
        ValueError: A method takes no steps.
        TrainingError: The measuring process failed; says what it said last.
    """
    for config in configs:
        if not takes_steps(build_rule(config, facts, torch.device("cpu")).phases()):
            raise ValueError(f"method: {config.method.name} takes no optimiser steps, so there is none to measure")
    rows = _in_fresh_process("step", configs, facts, baselines=list(baselines), seconds=seconds, rounds=rounds)
    named = [*((config.method.name, config) for config in configs), *((name, configs[0]) for name in baselines)]
    return [_of(config, name) | row for (name, config), row in zip(named, rows, strict=True)]


def memory_row(config: RunConfig, facts: DataFacts, backprop: Memory, *, baseline: str | None = None) -> dict[str, Any]:
    """Measure the memory of a method, or of a baseline, beside that of backprop.

    Returns:
        Growth over three steps after the network and the batch are there, before the optimiser is: of the resident set
        (`peak_memory_bytes`), and of the bytes of living tensors (`live_tensor_bytes`); both for backprop; the ratios.
    """
    own = memory_of(baseline or "method", config, facts)
    ratios = {"memory_ratio": "peak_memory_bytes", "live_ratio": "live_tensor_bytes"}
    return (
        _of(config, baseline or config.method.name)
        | own
        | {f"backprop_{key}": value for key, value in backprop.items()}
        | {ratio: own[key] / backprop[key] if backprop[key] else None for ratio, key in ratios.items()}
    )


def memory_rows(
    configs: Sequence[RunConfig], facts: DataFacts, *, baselines: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Measure the memory of methods and baselines; one row each, see `memory_row`."""
    backprop = {protocol(config): memory_of("bp", config, facts) for config in configs}
    rows = [memory_row(config, facts, backprop[protocol(config)]) for config in configs]
    beside = backprop[protocol(configs[0])]
    return rows + [memory_row(configs[0], facts, beside, baseline=name) for name in baselines]


def facts_of(config: RunConfig) -> DataFacts:
    """Describe the run's data set without reading it, in its network's size: a benchmark's images are noise.

    Raises:
        ValueError: It is none of the named data sets.
    """
    entry = CATALOGUE.get(config.data.name)
    if entry is None:
        raise ValueError(f"--data {config.data.name}: a benchmark needs a named data set; see localprop data")
    channels, *sides = entry.image_shape
    if image_size := config.image_size or models.image_size(config.model.name):
        sides = [image_size] * 2
    mean, std = entry.mean or (0.5,) * channels, entry.std or (0.25,) * channels
    return DataFacts(entry.class_names, (channels, sides[0], sides[1]), mean, std)


def memory_of(what: str, config: RunConfig, facts: DataFacts) -> Memory:
    """Measure the memory of "method", or of a baseline by its name, in a fresh process."""
    found: Memory = _in_fresh_process("memory", [config], facts, subject=what)
    return found


def protocol(config: RunConfig) -> str:
    """Name everything that decides what backprop beside a method costs; some methods bring a batch size."""
    return replace(config, method=Component("bp")).to_yaml()


def _of(config: RunConfig, name: str) -> dict[str, Any]:
    return {
        "method": name,
        "model": config.model.name,
        "width": config.model.settings.get("width", 1.0),
        "batch_size": config.batch_size,
        "precision": "bf16" if name == "bp-bf16" else config.precision,
    }


def _in_fresh_process(what: str, configs: Sequence[RunConfig], facts: DataFacts, **more: Any) -> Any:
    with TemporaryDirectory() as directory:
        files = []
        for number, config in enumerate(configs):
            files.append(Path(directory) / f"{number}.yaml")
            files[-1].write_text(config.to_yaml(), encoding="utf-8")
        order: Mapping[str, Any] = {"what": what, "configs": list(map(str, files)), "facts": asdict(facts), **more}
        command = [sys.executable, "-m", "localprop.bench", json.dumps(order)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        names = ", ".join(config.method.name for config in configs)
        raise TrainingError(f"measuring {names} ({what}) ended with exit code {done.returncode} and said: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
