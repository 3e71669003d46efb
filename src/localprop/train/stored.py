"""Finished runs: read back from their directory, without running code that a file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

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
    """

    config: RunConfig
    facts: DataFacts
    rule: Rule
    device: torch.device
    step: int


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
    place = resolve_device(device or config.device)
    state = checkpoint.load(newest)
    try:
        facts, weights, step = DataFacts.read(state["data"]), dict(state["rule"]), int(state["step"])
        rule = build_rule(config, facts, place)
        rule.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{newest}: does not fit {file} ({type(error).__name__}: {' '.join(str(error).split())}); one of the two "
            "was changed, or written by another version of localprop"
        ) from error
    return StoredRun(config, facts, rule.eval(), place, step)
