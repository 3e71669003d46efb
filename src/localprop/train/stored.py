"""Finished runs: read back from their directory, without running code that a file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from localprop.rules import Rule
from localprop.train import checkpoint
from localprop.train.assemble import DataFacts, build_rule, resolve_device
from localprop.train.config import RunConfig, config_from
from localprop.train.errors import is_out_of_memory


@dataclass(frozen=True)
class StoredRun:
    """A trained network and what is needed to use it.

    Attributes:
        config: The run's settings.
        facts: Classes, image shape and normalisation.
        rule: The trained rule, in evaluation mode.
        device: Where it lies.
        step: Optimiser steps behind it.
        directory: The run directory.
    """

    config: RunConfig
    facts: DataFacts
    rule: Rule
    device: torch.device
    step: int
    directory: Path


def load_run(directory: Path, *, device: str | None = None, allow_imports: bool = False) -> StoredRun:
    """Load the newest state of a run.

    Args:
        directory: A run directory.
        device: Where to put it, a torch device; default the run's own.
        allow_imports: Whether import paths in its config.yaml, which execute code, may be imported.

    Raises:
        ValueError: Not a run directory, a run without a checkpoint, or a damaged one.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        raise ValueError(
            f"{directory}: not a run of localprop, it has no config.yaml; name the --out of a training run"
        )
    newest = checkpoint.newest(directory / "checkpoint")
    if newest is None:
        raise ValueError(f"{directory}: the run has no checkpoint yet; go on training with --resume auto")
    config = config_from({}, file, allow_imports=allow_imports)
    return load_state(checkpoint.load(newest), newest, config, resolve_device(device or config.device))


def load_state(
    state: Mapping[str, Any], source: Path, config: RunConfig, device: torch.device, model: nn.Module | None = None
) -> StoredRun:
    """Build a run's rule and give it the state of a checkpoint.

    Args:
        state: The checkpoint.
        source: Its file, for messages.
        config: The run's settings.
        device: Where the rule goes.
        model: See `build_rule`.

    Raises:
        ValueError: The checkpoint does not fit the settings.
    """
    try:
        facts, weights, step = DataFacts.read(state["data"]), dict(state["rule"]), int(state["step"])
        rule = build_rule(config, facts, device, model)
        rule.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        file = source.parent.parent / "config.yaml"
        raise ValueError(
            f"{source}: does not fit {file} ({type(error).__name__}: {' '.join(str(error).split())}); one of the two "
            "was changed, or written by another version of localprop"
        ) from error
    return StoredRun(config, facts, rule.eval(), device, step, source.parent.parent)
