"""How the settings of a run come about: flags before the file before the method's recipe before defaults."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localprop.train.components import KINDS, Component, Part, find, is_import_path
from localprop.train.settings import ConfigError, RunConfig, coerce, field_types, plain, read_yaml

if TYPE_CHECKING:
    from localprop.types import TrainingRecipe

__all__ = ["Component", "ConfigError", "Resolved", "RunConfig", "config_from", "resolve"]

DEFAULT_NAMES: Mapping[str, str] = {"method": "dcl", "model": "vgg8b", "data": "fashion-mini"}


@dataclass(frozen=True)
class Resolved:
    """A run's settings and what the user should know of how they came about.

    Attributes:
        config: The settings.
        notes: Lines for the console: the recipe, what the user changed of it, what is not used.
    """

    config: RunConfig
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Given:
    value: Any
    label: str
    file: Path | None = None


_Layer = dict[str, _Given]  # "model", "model.width", "epochs" -> what was given for it


def config_from(flags: Mapping[str, Any], file: Path | str | None = None, *, allow_imports: bool = False) -> RunConfig:
    """Resolve the settings of a run; see `resolve`."""
    return resolve(flags, file, allow_imports=allow_imports).config


def config_in(settings: Mapping[str, Any], file: Path, *, allow_imports: bool = False) -> RunConfig:
    """Resolve settings that were read from a file, such as `RunConfig.to_dict` gives them; see `resolve`."""
    problems: list[str] = []
    layer = _settings(settings, file, problems)
    return _resolve([layer], problems, allow_imports).config


def resolve(flags: Mapping[str, Any], file: Path | str | None = None, *, allow_imports: bool = False) -> Resolved:
    """Resolve the settings of a run: flags before the file before the method's recipe before defaults.

    A component's settings belong to its name: those that a file or the recipe gives for another do not apply.

    Args:
        flags: Settings by name: "epochs", "model", "model.width". Text is converted, paths are imported.
        file: A YAML file: `model: vgg8b`, or `model: {name: vgg8b, width: 0.25}`.
        allow_imports: Whether import paths in the file, which execute code, may be imported.

    Raises:
        ConfigError: All mistakes at once.
    """
    problems: list[str] = []
    layers = [_flags(flags), _file(None if file is None else Path(file), problems)]
    return _resolve(layers, problems, allow_imports)


def _resolve(layers: Sequence[_Layer], problems: list[str], allow_imports: bool) -> Resolved:
    notes: list[str] = []
    user = _layered(layers, notes)
    names = {**{kind: _Given(name, f"--{kind}") for kind, name in DEFAULT_NAMES.items()}, **user}
    parts = {kind: _part(kind, names[kind], allow_imports, problems) for kind in KINDS if kind in names}
    settings = {kind: part.settings for kind, part in parts.items() if part}

    published = None
    recipe: _Layer = {}
    if all(kind in settings for kind in DEFAULT_NAMES):
        published = _published(*(names[kind].value for kind in DEFAULT_NAMES))
        recipe = _recommended(published)
        for kind in ("optimizer", "schedule"):
            if kind not in names:
                settings[kind] = find(kind, recipe[kind].value).settings
        recipe = {key: given for key, given in recipe.items() if _is_known(key, settings)}
    merged = _layered([user, recipe, names], [])

    problems += [_unknown(key, merged, settings) for key in merged if not _is_known(key, settings)]
    fields = {name: (annotation, merged.get(name)) for name, annotation in field_types().items()}
    values: dict[str, Any] = _coerced(fields, problems)
    values |= {kind: _component(kind, allowed, merged, problems) for kind, allowed in settings.items()}
    if problems or published is None:
        raise ConfigError(problems)
    config = RunConfig(**values)
    return Resolved(config, (*_explain(recipe, published, config), *notes))


def _flags(flags: Mapping[str, Any]) -> _Layer:
    return {key.replace("-", "_"): _Given(value, f"--{key.replace('_', '-')}") for key, value in flags.items()}


def _file(file: Path | None, problems: list[str]) -> _Layer:
    if file is None:
        return {}
    try:
        content = read_yaml(file)
    except ConfigError as error:
        problems += error.problems
        return {}
    return _settings(content, file, problems)


def _settings(content: Mapping[str, Any], file: Path, problems: list[str]) -> _Layer:
    layer: _Layer = {}
    for key, value in content.items():
        entries = {key: value}
        if key in KINDS and isinstance(value, dict):
            entries = {key if name == "name" else f"{key}.{name}": entry for name, entry in value.items()}
        for name, entry in entries.items():
            setting = name.replace("-", "_")
            if setting in layer:
                problems.append(f"{file}: {name} {entry}: is set twice; keep one of the two")
            layer[setting] = _Given(entry, f"{file}: {name}", file)
    return layer


def _layered(layers: Sequence[_Layer], notes: list[str]) -> _Layer:
    """Lay earlier layers over later ones; a component's settings go only with the name they are for."""
    merged: _Layer = {}
    names = {kind: given for layer in reversed(layers) for kind, given in layer.items() if kind in KINDS}
    for layer in reversed(layers):
        for key, given in layer.items():
            kind, _, setting = key.partition(".")
            if setting and kind in layer and layer[kind].value != names[kind].value:
                notes.append(f"not used: {given.label} {given.value}: it is for {layer[kind].value}")
            else:
                merged[key] = given
    return merged


def _part(kind: str, given: _Given, allow_imports: bool, problems: list[str]) -> Part | None:
    name = given.value
    try:
        if not isinstance(name, str):
            raise ValueError("must be a name, or a mapping with a name")
        if given.file and is_import_path(kind, name) and not allow_imports:
            raise ValueError("an import path executes code; from a file it is taken only with --allow-imports")
        return find(kind, name)
    except ValueError as error:
        problems.append(f"{given.label} {name}: {str(error).removeprefix(f'{kind}: ')}")
        return None


def _published(method: str, model: str, data: str) -> TrainingRecipe:
    from localprop.methods import recipe_for

    return recipe_for(method, model, data)


def _recommended(recipe: TrainingRecipe) -> _Layer:
    schedule: dict[str, Any] = {"schedule": "constant"}
    if recipe.milestones:
        steps = {"schedule.milestones": recipe.milestones, "schedule.gamma": recipe.gamma}
        schedule = {"schedule": "multistep", **steps}
    settings = {
        "batch_size": recipe.batch_size,
        "optimizer": recipe.optimizer,
        "optimizer.lr": recipe.lr,
        "optimizer.weight_decay": recipe.weight_decay,
        **{f"optimizer.{name}": value for name, value in recipe.optimizer_settings.items()},
        **schedule,
        "model.dropout": recipe.dropout,
        **{f"method.{name}": value for name, value in recipe.method_settings.items()},
    }
    return {key: _Given(value, "recipe") for key, value in settings.items()}


def _is_known(key: str, settings: Mapping[str, Mapping[str, Parameter]]) -> bool:
    kind, _, setting = key.partition(".")
    if not setting:
        return key in KINDS or key in field_types()
    # The settings of a component that was not found are anybody's guess.
    return kind in KINDS and (kind not in settings or setting in settings[kind])


def _unknown(key: str, merged: _Layer, settings: Mapping[str, Mapping[str, Parameter]]) -> str:
    def spelled(name: str) -> str:
        return name if given.file else f"--{name.replace('_', '-')}"

    given = merged[key]
    kind, _, setting = key.partition(".")
    said = f"{given.label} {given.value}"
    if kind == "objective":
        return f"{said}: the settings of an objective are its method's; write {spelled(f'method.{setting}')}"
    own = settings.get(kind, {}) if setting else {}
    every = [*KINDS, *field_types(), *(f"{part}.{name}" for part in settings for name in settings[part])]
    elsewhere = [name for name in every if name.rpartition(".")[2] == (setting or key)]
    choices = {name: f"{kind}.{name}" for name in own} or {name: name for name in every}
    close = elsewhere[:1] or [
        choices[name] for name in difflib.get_close_matches(setting if own else key, choices, n=1)
    ]
    hint = f" (did you mean {spelled(close[0])}?)" if close else ""
    return f"{said}: no such setting{hint}" + (f"; {merged[kind].value} has {', '.join(own)}" if own else "")


def _component(kind: str, allowed: Mapping[str, Parameter], merged: _Layer, problems: list[str]) -> Component:
    wanted = {name: (parameter.annotation, merged.get(f"{kind}.{name}")) for name, parameter in allowed.items()}
    values = _coerced(wanted, problems)
    for name, parameter in allowed.items():
        if wanted[name][1] is not None:
            continue
        if parameter.default is Parameter.empty:
            problems.append(f"--{kind}.{name.replace('_', '-')}: {merged[kind].value} needs a value for it")
        elif isinstance(parameter.default, bool | int | float | str | tuple | list):
            values[name] = coerce(parameter.annotation, parameter.default)
    return Component(merged[kind].value, {name: values[name] for name in allowed if name in values})


def _coerced(wanted: Mapping[str, tuple[Any, _Given | None]], problems: list[str]) -> dict[str, Any]:
    values = {}
    for name, (annotation, given) in wanted.items():
        if given is None:
            continue
        try:
            values[name] = coerce(annotation, given.value)
        except ValueError as error:
            problems.append(f"{given.label} {given.value}: {error}")
    return values


def _explain(recipe: _Layer, published: TrainingRecipe, config: RunConfig) -> list[str]:
    final: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        if key in KINDS:
            final |= {key if name == "name" else f"{key}.{name}": entry for name, entry in value.items()}
        else:
            final[key] = value
    advice = {key: plain(given.value) for key, given in recipe.items()}
    lines = [f"recipe: {_listed(advice)} ({published.source}; published with {published.epochs} epochs)"]
    changed = {key: final[key] for key, value in advice.items() if key in final and final[key] != value}
    return [*lines, f"this run instead: {_listed(changed)}"] if changed else lines


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
