"""The rows of `localprop bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from localprop.bench.cost import facts_of, memory_rows, step_rows
from localprop.bench.depth import depth_rows
from localprop.train.config import RunConfig

STEP_SECONDS, STEP_ROUNDS = 20.0, (5, 40)
BACKPROP_UP_TO = 256  # blocks; beyond, its activations outgrow the memory of most machines


def bench_rows(
    what: Literal["step", "memory", "depth"],
    configs: Sequence[RunConfig],
    *,
    baselines: Sequence[str] = (),
    depths: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Measure methods beside backprop written by hand.

    Args:
        what: Time of a step, memory of a step, or memory over depth (on a network of its own).
        configs: One a method, alike but for the method and what its recipe sets.
        baselines: Other ways to write backprop, for "step" and "memory".
        depths: Numbers of residual blocks, for "depth".

    Raises:
        ValueError: A method takes no steps, does not fit the network, or the data set is not a named one.
        TrainingError: A measuring process failed.
    """
    if what == "depth":
        return list(depth_rows([*(c.method.name for c in configs), "bp"], depths, backprop_up_to=BACKPROP_UP_TO))
    facts = facts_of(configs[0])
    if what == "memory":
        return memory_rows(configs, facts, baselines=baselines)
    return step_rows(configs, facts, baselines=baselines, seconds=STEP_SECONDS, rounds=STEP_ROUNDS)
