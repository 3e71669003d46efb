"""Weights to start from: those of another run, of a file, or the pretrained ones of timm and torchvision."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localprop import models
from localprop.train import checkpoint
from localprop.train.assemble import DataFacts, build_model, build_rule
from localprop.train.config import Component, RunConfig, config_from
from localprop.train.errors import is_out_of_memory
from localprop.train.stored import load_state

PRETRAINED = "pretrained"
WARM_UP = "warm-up"
"""Where a run keeps its warm-up, a run of its own."""
_NESTED = ("state_dict", "model")
"""Where training scripts keep the network's weights in a file that holds more."""


def warm_up_of(config: RunConfig) -> RunConfig:
    """Return the settings of a run's warm-up: the same network, trained by backprop on all of the data."""
    assert config.warmup_epochs is not None
    return replace(
        config,
        method=Component("bp"),
        epochs=config.warmup_epochs,
        warmup_epochs=None,
        curriculum=None,
        feature_cache_mb=None,
    )


class Fitted(NamedTuple):
    """Weights that fit a network, and what of it they leave as it was drawn.

    Attributes:
        state: Every parameter and buffer of the network, by its name.
        drawn: Names of those that the weights do not hold for as many classes.
        unused: Names in the weights that the network does not have.
    """

    state: dict[str, Tensor]
    drawn: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.state) - len(self.drawn)} of {len(self.state)} tensors"]
        parts += [f"drawn anew, for other classes: {', '.join(self.drawn)}"] if self.drawn else []
        parts += [f"not used: {_few(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def starting_network(
    config: RunConfig, facts: DataFacts, directory: Path, begins: bool, allow_imports: bool
) -> tuple[nn.Module, Fitted | None]:
    """Build the network of a run, with the weights that it starts from.

    Args:
        config: The run's settings.
        facts: Its data.
        directory: Its directory, which holds its warm-up.
        begins: Whether it begins; the weights of one that goes on come from its checkpoint.
        allow_imports: See `starting_weights`.

    Raises:
        ValueError: See `starting_weights`.
    """
    network = build_model(config, facts)
    fitted = None
    if begins and config.warmup_epochs is not None:
        # The warm-up's settings are known: what they import needs no leave, for the user has named it.
        weights = _trained(directory / WARM_UP, warm_up_of(config))
        fitted = fit_weights(network, weights, len(facts.class_names))
    elif begins:
        fitted = starting_weights(config, facts, network, allow_imports=allow_imports)
    if fitted is not None:
        network.load_state_dict(fitted.state)
    return network, fitted


def starting_weights(
    config: RunConfig, facts: DataFacts, network: nn.Module, *, allow_imports: bool = False
) -> Fitted | None:
    """Return the weights that the settings name in the names of the run's network; None if they name none.

    Args:
        config: The run's settings.
        facts: Its data.
        network: Its network, as it is drawn.
        allow_imports: Whether import paths in the settings of the run that they are taken from may be imported.

    Raises:
        ValueError: There are none, they cannot be read, or they are of another network.
    """
    if config.weights is None:
        return None
    try:
        weights = read_weights(config, facts, allow_imports=allow_imports)
        return fit_weights(network, weights, len(facts.class_names))
    except ValueError as error:
        raise ValueError(f"--weights {config.weights}: {str(error).removeprefix('weights: ')}") from error


def check_start(config: RunConfig, facts: DataFacts) -> None:
    """Refuse weights, or a warm-up, where a run trains a network of its own.

    Raises:
        ValueError: Says why.
    """
    if not (config.weights or config.warmup_epochs):
        return
    network = build_model(config, facts)
    rule = build_rule(config, facts, torch.device("cpu"), network)
    if not _is_trained_by(rule, network):
        flag = f"--weights {config.weights}" if config.weights else f"--warmup-epochs {config.warmup_epochs}"
        raise ValueError(f"{flag}: {config.method.name} trains a network of its own; it cannot start from weights")


def read_weights(config: RunConfig, facts: DataFacts, *, allow_imports: bool = False) -> dict[str, Tensor]:
    """Return the weights that the settings name, by the names that they have there.

    Raises:
        ValueError: There are none, or they cannot be read.
    """
    assert config.weights is not None
    path = Path(config.weights)
    if config.weights == PRETRAINED:
        return models.pretrained(config.model.name, facts.image_shape, len(facts.class_names))
    if path.is_dir():
        return _of_run(path, allow_imports)
    if not path.exists():
        raise ValueError(f"weights: no such run or file; name a run directory, a file of weights, or {PRETRAINED}")
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_file(path)


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], num_classes: int) -> Fitted:
    """Give every tensor of a network its value in `weights`.

    A tensor with a row for each class (the classifier) stays as it is where `weights` hold another number of rows. A
    convolution reads gray images as colour images of three equal channels: its weights for 3 input channels are summed
    into one, and those for one are shared out among three, a third each.

    Args:
        network: The network.
        weights: Tensors by name.
        num_classes: Z.

    Raises:
        ValueError: A tensor is missing or of another shape.
    """
    own = network.state_dict()
    state, drawn, wrong = {}, [], []
    for name, tensor in own.items():
        given = weights.get(name)
        if given is None:
            wrong.append(f"{name} is missing")
        elif given.shape == tensor.shape:
            state[name] = given
        elif given.shape[1:] == tensor.shape[1:] and given.dim() and tensor.shape[0] == num_classes:
            state[name] = tensor
            drawn.append(name)
        elif (fitting := _for_channels(given, tensor)) is not None:
            state[name] = fitting
        else:
            wrong.append(f"{name} has shape {tuple(given.shape)}, the network's {tuple(tensor.shape)}")
    unused = tuple(name for name in weights if name not in own)
    if wrong:
        extra = f"; they hold {_few(unused)}, which the network has not" if unused else ""
        raise ValueError(f"weights: they are of another network: {_few(wrong)}{extra}; build it with the same settings")
    return Fitted(state, tuple(drawn), unused)


def _for_channels(given: Tensor, wanted: Tensor) -> Tensor | None:
    if given.dim() < 3 or given.shape[0] != wanted.shape[0] or given.shape[2:] != wanted.shape[2:]:
        return None
    if (given.shape[1], wanted.shape[1]) == (3, 1):
        return given.sum(1, keepdim=True)
    if (given.shape[1], wanted.shape[1]) == (1, 3):
        return given.expand_as(wanted) / 3
    return None


def _of_run(directory: Path, allow_imports: bool) -> dict[str, Tensor]:
    file = directory / "config.yaml"
    if not file.is_file():
        raise ValueError("weights: not a run of localprop, it has no config.yaml; name the --out of a training run")
    return _trained(directory, config_from({}, file, allow_imports=allow_imports))


def _trained(directory: Path, config: RunConfig) -> dict[str, Tensor]:
    """Return the newest weights of a run's network, by the names that they have in it."""
    newest = checkpoint.newest(directory / "checkpoint")
    if newest is None:
        raise ValueError("weights: the run has no checkpoint yet; go on training it with --resume auto")
    state = checkpoint.load(newest)
    try:
        network = build_model(config, DataFacts.read(state["data"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"weights: {newest} holds no facts of its data ({error}); train the run again") from error
    run = load_state(state, newest, config, torch.device("cpu"), network)
    if not _is_trained_by(run.rule, network):
        raise ValueError(f"weights: {config.method.name} trained a network of its own, not {config.model.name}")
    return network.state_dict()


def _is_trained_by(rule: nn.Module, network: nn.Module) -> bool:
    return set(network.parameters()) <= set(rule.parameters())


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("weights: needs the package safetensors; pip install 'localprop[hub]'") from error
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"weights: cannot be read as safetensors ({error}); write the file again") from error


def _of_file(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the reader raise anything
        if is_out_of_memory(error):
            raise
        reason = "" if zipfile.is_zipfile(path) else " (it is no file of torch.save)"
        raise ValueError(
            f"weights: cannot be read without executing code{reason}; save them as torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(content, Mapping) and content.get("format") == checkpoint.FORMAT:
        raise ValueError("weights: this is a checkpoint of a run; name the run directory")
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            "weights: the file holds no tensors by name; save them as torch.save(model.state_dict(), FILE)"
        )
    names = [str(name) for name in content]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""  # of DistributedDataParallel
    return {name.removeprefix(prefix): value for name, value in zip(names, content.values(), strict=True)}


def _few(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
