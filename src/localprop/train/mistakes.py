"""Find every setting that the parts of a run refuse, not only the first: for the message, after a build has failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import TypeVar

import torch
from torch import nn

from localprop.data.loader import BatchLoader
from localprop.data.store import DataError, ImageData
from localprop.rules import Rule
from localprop.train.assemble import (
    DataFacts,
    build_executor,
    build_loader,
    build_model,
    build_rule,
    load_data,
    num_steps,
    optimizer_factory,
    resolve_device,
)
from localprop.train.components import Component, find
from localprop.train.config import RunConfig
from localprop.train.curriculum import curriculum_order
from localprop.train.phases import plan
from localprop.train.settings import ConfigError, field_types
from localprop.train.weights import check_start, starting_weights

Built = TypeVar("Built")


def check(configs: Sequence[RunConfig], *, allow_imports: bool = False) -> None:
    """Build every part of the runs once.

    Args:
        configs: Runs on the same data.
        allow_imports: Whether import paths in the settings of other runs that they name may be imported.

    Raises:
        ConfigError: Some part refuses its settings; all that are refused.
    """
    problems: list[str] = []
    images = _images(configs[0], problems)
    for config in configs:
        problems += _mistakes(config, images, allow_imports)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _images(config: RunConfig, problems: list[str]) -> ImageData | None:
    def load(component: Component) -> ImageData:
        return load_data(replace(config, data=component)).data

    return _build("data", config.data, load, problems)


def _mistakes(config: RunConfig, images: ImageData | None, allow_imports: bool) -> list[str]:
    """Return what the parts of a run refuse, one line each; without images what can be known without them.

    A setting that its builder refuses is put back to its default, and the part is built again, until nothing more is
    refused: the ranges stand in the builders alone. What is refused because of such a default is no mistake.
    """
    problems: list[str] = []
    host = torch.device("cpu")
    _tried(lambda: resolve_device(config.device), problems)

    def schedule(component: Component) -> object:
        return find("schedule", component.name).builder(**component.settings)

    def optimizer(component: Component) -> object:
        return optimizer_factory(component.name, dict(component.settings))([nn.Parameter(torch.zeros(1))])

    _build("schedule", config.schedule, schedule, problems)
    _build("optimizer", config.optimizer, optimizer, problems)
    if images is None:
        return problems
    facts = DataFacts.of(images)

    def model(component: Component) -> Component:
        build_rule(replace(config, model=component, method=Component("bp")), facts, host)
        return component

    sound = _build("model", config.model, model, problems)
    if sound is None and config.at is not None:
        config = replace(config, at=None)
        sound = _build("model", config.model, model, problems)
    if sound is None:
        return problems
    config = replace(config, model=sound)
    rule = _build("method", config.method, lambda part: build_rule(replace(config, method=part), facts, host), problems)
    drawn = build_model(config, facts)
    _tried(lambda: starting_weights(config, facts, drawn, allow_imports=allow_imports), problems)
    if config.curriculum is not None:
        _tried(lambda: curriculum_order(config, images, allow_imports=allow_imports), problems)
    if rule is not None and not problems:
        _tried(lambda: check_start(config, facts), problems)
        _tried(lambda: _plan(config, rule, build_loader(config, images, rule, host)), problems)
        on_host = config if resolve_device(config.device).type == "cpu" else replace(config, offload_optimizer=False)
        _tried(lambda: build_executor(on_host, rule), problems)
    return problems


def _plan(config: RunConfig, rule: Rule, loader: BatchLoader) -> object:
    phases = rule.phases()
    return plan(phases, num_blocks=len(rule.net), total_steps=num_steps(config, phases, loader))


def _build(kind: str, component: Component, build: Callable[[Component], Built], problems: list[str]) -> Built | None:
    """Build a part; what it refuses goes to `problems`. Returns None if it cannot be built without a setting either."""
    settings, put_back = dict(component.settings), set[str]()
    while True:
        try:
            return build(Component(component.name, settings))
        except ValueError as error:
            setting, _, reason = str(error).removeprefix(f"{kind}.").partition(": ")
            if setting in put_back:  # its default does not go with another setting: reported already
                return None
            if setting not in settings:
                problems.append(str(error) if isinstance(error, DataError) else _labelled(str(error), kind, component))
                return None
            value = settings.pop(setting)
            if put_back.isdisjoint(re.findall(r"\w+", reason)):
                problems.append(f"--{kind}.{setting.replace('_', '-')} {value}: {reason}")
            put_back.add(setting)
            if find(kind, component.name).settings[setting].default is Parameter.empty:
                return None


def _tried(build: Callable[[], object], problems: list[str]) -> None:
    try:
        build()
    except ValueError as error:
        problems.append(_as_flag(str(error)))


def _as_flag(message: str) -> str:
    """Write the setting that a message is about as its flag, if it is one of a run's own."""
    setting, colon, reason = message.partition(": ")
    return f"--{setting.replace('_', '-')}{colon}{reason}" if setting in field_types() else message


def _labelled(message: str, kind: str, component: Component) -> str:
    """Say which flag a message is about, unless it does."""
    if (as_flag := _as_flag(message)).startswith("--"):
        return as_flag
    return f"--{kind} {component.name}: {message.removeprefix(f'{kind}: ')}"
