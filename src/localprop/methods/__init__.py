"""The catalogue: ONE table, name -> Method, put together from the families."""

from __future__ import annotations

import importlib
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor

from localprop.errors import nearest
from localprop.methods import (
    auxiliary,
    backprop,
    bounds,
    cascade,
    contrastive,
    dictionary,
    feedback,
    forward_only,
    goodness,
    greedy,
    information,
    layerwise,
    local_error,
    overlap,
    patches,
    self_supervised,
    synthetic,
    target,
)
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.recipes import recipe_for as network_recipe
from localprop.rules import Rule
from localprop.types import TrainingRecipe

__all__ = ["CATALOGUE", "Method", "build", "catalogue", "get", "recipe_for"]

ENTRY_POINTS = "localprop.methods"

_FAMILIES = (
    backprop,
    dictionary,
    contrastive,
    local_error,
    information,
    greedy,
    layerwise,
    overlap,
    auxiliary,
    self_supervised,
    goodness,
    forward_only,
    cascade,
    feedback,
    synthetic,
    target,
    patches,
    bounds,
)

CATALOGUE: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}


def catalogue() -> dict[str, Method]:
    """Return all methods: ours, then those that installed packages add by the entry-point group `localprop.methods`.

    Raises:
        ValueError: An installed package offers something that is not a Method, or takes a name that exists.
    """
    methods = dict(CATALOGUE)
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in methods:
            raise ValueError(f"method: the entry point {entry.name!r} of {entry.value!r} takes a name that exists")
        methods[entry.name] = _checked(entry.load(), entry.value)
    return methods


def get(name: str) -> Method:
    """Return a method by name, or by import path `package.module:METHOD` (this imports and runs that code).

    Raises:
        ValueError: No such method.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            return _checked(getattr(importlib.import_module(module_name), attribute), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"method: cannot import {name!r}: {error}") from error
    methods = catalogue()
    if name not in methods:
        raise ValueError(
            f"method: no method {name!r}{nearest(name, methods)}; there are {', '.join(methods)}, "
            "and package.module:METHOD"
        )
    return methods[name]


def build(name: str, net: LocalNetwork, *, num_classes: int, example: Tensor, **settings: Any) -> Rule:
    """Build the rule of a method by name; see `Method.build`.

    Raises:
        ValueError: No such method, or a wrong setting.
    """
    return get(name).build(net, num_classes=num_classes, example=example, **settings)


def recipe_for(method: str, model: str, data: str) -> TrainingRecipe:
    """Return how a method is trained on a network and a data set: the network's recipe, with its own `training`.

    Args:
        method: Name or import path of the method.
        model: Name of the network.
        data: Name of the data set.

    Raises:
        ValueError: No such method.
    """
    recipe, own = network_recipe(model, data), get(method).training
    published = get(method).defaults_on.get(model, {})
    sources = [recipe.source, *([f"{', '.join(own)} of {method}"] if own else [])]
    sources += [f"{name} of {method} as published for such networks" for name in published]
    return replace(recipe, **{"source": "; ".join(sources), "method_settings": published, **own})


def _checked(found: object, where: str) -> Method:
    if not isinstance(found, Method):
        raise ValueError(f"method: {where!r} is a {type(found).__name__}, not a localprop.methods.Method")
    return found
