"""What is said of an exported network inside its file: what goes in, what comes out, and the run that it is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from localprop import __version__
from localprop.data import CATALOGUE
from localprop.infer.trained import Exit, TrainedNetwork
from localprop.report.runs import Final, read_final_of
from localprop.train.checkpoint import weights_sha256
from localprop.train.config import RunConfig
from localprop.train.stored import StoredRun

_OF_A_MACHINE = ("device", "threads", "feature_cache_mb", "keep", "checkpoint_every", "log", "log_every")
_DIRECTORIES = ("weights", "curriculum")


def describe(run: StoredRun, network: TrainedNetwork, outputs: tuple[str, ...]) -> dict[str, Any]:
    """Return the facts that every exported file carries; JSON can hold them all."""
    return {
        "localprop": __version__,
        "method": run.config.method.name,
        "model": run.config.model.name,
        "data": published_data(run.config.data.name),
        "exit": exit_name(network.exit, network.block_names),
        "outputs": list(outputs),
        "class_names": list(network.class_names),
        "image_shape": list(network.image_shape),
        "pixels": "0 to 1",
        "step": run.step,
    }


def exit_name(exit: Exit, block_names: tuple[str, ...]) -> str:
    """Return what a user calls an exit."""
    return exit if isinstance(exit, str) else block_names[exit]


def numbers_of(run: StoredRun, directory: Path) -> Final | None:
    """Return what a finished run says of itself, None of one that has not finished.

    Raises:
        ValueError: Its final.json is not valid, or of other weights than those of its newest checkpoint.
    """
    if not (directory / "final.json").exists():
        return None
    final = read_final_of(directory)
    if final.weights_sha256 != weights_sha256(run.rule.state_dict()):
        raise ValueError(
            f"{directory / 'final.json'}: its numbers are of other weights than those of the newest checkpoint; "
            "finish the run with --resume auto, or delete the file to export without numbers"
        )
    return final


def published_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run without what tells of the machine and its directories."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _OF_A_MACHINE}
    data = {name: value for name, value in settings["data"].items() if name != "root"}
    named = {name: _last_part(settings[name]) for name in _DIRECTORIES if name in settings}
    return settings | named | {"data": data | {"name": published_data(config.data.name)}}


def published_data(name: str) -> str:
    """Return the name of a data set; of a directory its last part alone."""
    scheme, colon, directory = name.partition(":")
    return name if name in CATALOGUE or not colon else f"{scheme}:{_last_part(directory)}"


def _last_part(directory: str) -> str:
    return os.path.basename(os.path.abspath(directory))
