"""A trained network as a folder in the layout of the Hugging Face Hub: model.safetensors, config.json, README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localprop.errors import check_installed
from localprop.infer.trained import Exit, TrainedNetwork, read_exit, stored_tensors
from localprop.train.assemble import DataFacts, build_rule
from localprop.train.checkpoint import weights_sha256
from localprop.train.config import config_in
from localprop.train.errors import is_out_of_memory

FORMAT = "localprop-network"
VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def write_folder(
    directory: Path, network: TrainedNetwork, facts: Mapping[str, Any], settings: Mapping[str, Any], card: str
) -> None:
    """Write the files of a folder.

    Args:
        directory: An empty directory.
        network: The network.
        facts: What it is; `DataFacts.read` must be able to read "mean" and "std" in it.
        settings: What `config_in` builds the network from.
        card: Text of the model card.

    Raises:
        OSError: They cannot be written.
    """
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in stored_tensors(network.rule).items()}
    config = {
        "format": FORMAT,
        "version": VERSION,
        **facts,
        "weights_sha256": weights_sha256(weights),
        "settings": dict(settings),
    }
    (directory / WEIGHTS).write_bytes(save(weights, {"format": "pt"}))
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / CARD).write_text(card, encoding="utf-8")


def read_folder(directory: Path, *, allow_imports: bool) -> TrainedNetwork:
    """Rebuild the network of a folder. Nothing in it is executed.

    Args:
        directory: What `write_folder` wrote.
        allow_imports: Whether import paths in its config.json, which execute code, may be imported.

    Raises:
        ValueError: It is no such folder, is damaged, or was made by another version.
    """
    check_installed(str(directory), ("safetensors",), "hub")
    file = directory / CONFIG
    content = _read_config(file)
    weights = _read_weights(directory / WEIGHTS, content.get("weights_sha256"))
    try:
        settings, facts, wanted = dict(content["settings"]), DataFacts.read(content), str(content["exit"])
        config = config_in(settings, file, allow_imports=allow_imports)
        rule = build_rule(config, facts, torch.device("cpu"))
        exit: Exit = read_exit(wanted, rule.net.names)
        foreign = rule.load_state_dict(weights, strict=False).unexpected_keys
        network = TrainedNetwork(rule, facts, exit)
        differing = stored_tensors(network.rule).keys() ^ weights.keys()
        if foreign or differing:
            raise ValueError(f"the network and the weights differ in {sorted({*foreign, *differing})[0]}")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{file}: does not fit {directory / WEIGHTS} ({type(error).__name__}: {' '.join(str(error).split())}); one "
            "of the two was changed, or written by another version of localprop"
        ) from error
    return network


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); download or export the folder again") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not JSON ({error}); download or export the folder again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file}: not a network that localprop exported, its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{file}: has format version {content.get('version')!r}, this localprop reads {VERSION}; upgrade localprop"
        )
    return content


def _read_weights(file: Path, sha256: object) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); download or export the folder again") from error
    except SafetensorError as error:
        raise ValueError(f"{file}: is damaged ({error}); download or export the folder again") from error
    if weights_sha256(weights) != sha256:
        raise ValueError(f"{file}: is not the file that {CONFIG} was written with; download or export the folder again")
    return weights
