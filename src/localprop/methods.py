"""The catalogue: ONE table, name -> Method. A Method binds a paper's name to a rule, its settings and a citation."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

from torch import Tensor

from localprop import builders, citations
from localprop.errors import nearest
from localprop.network import LocalNetwork
from localprop.recipes import recipe_for
from localprop.rules import Rule

__all__ = ["CATALOGUE", "Method", "build", "catalogue", "get", "recipe_for"]

ENTRY_POINTS = "localprop.methods"


@dataclass(frozen=True)
class Method:
    """One row of the catalogue.

    Attributes:
        name: What users type.
        title: One line for tables.
        family: Which methods it belongs to.
        year: Year of the paper.
        citation: BibTeX.
        builder: `(net, specs, *, settings) -> Rule`; its keyword-only parameters are the settings.
        auxiliary_parameters: What is trained beside the network, in words; "none" if nothing.
        fixed: Settings that make the method what it is; users cannot change them.
        defaults: Defaults that differ from the builder's.
        needs_labels: Whether training reads labels.
        messages: What crosses blocks beside activations: "none", "shared parameters" or "gradients".
        passes: Forward passes through a block in one step.
        updates_in_forward: Whether a block is updated before the next block runs.
        global_error: Whether the error of the last block reaches hidden blocks.
    """

    name: str
    title: str
    family: str
    year: int
    citation: str
    builder: Callable[..., Rule]
    auxiliary_parameters: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs_labels: bool = True
    messages: Literal["none", "shared parameters", "gradients"] = "none"
    passes: int = 1
    updates_in_forward: bool = True
    global_error: bool = False

    def settings(self) -> dict[str, inspect.Parameter]:
        """Return the settings that a user may change: name -> parameter with its type and default."""
        parameters = inspect.signature(self.builder, eval_str=True).parameters.values()
        return {
            p.name: p.replace(default=self.defaults.get(p.name, p.default))
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name not in self.fixed
        }

    def build(self, net: LocalNetwork, *, num_classes: int, example: Tensor, **settings: Any) -> Rule:
        """Build the rule for a network.

        Args:
            net: The network, from `localprop.split` or `localprop.models`.
            num_classes: Z.
            example: A batch of inputs, for the shapes; one sample is enough.
            settings: See `settings()`.

        Raises:
            ValueError: An unknown setting, or one out of its range.
        """
        allowed = self.settings()
        for name in settings:
            if name not in allowed:
                raise ValueError(
                    f"{name}: not a setting of method {self.name!r}{nearest(name, allowed)}; "
                    f"it has {list(allowed) or 'none'}"
                )
        return self.builder(net, net.specs(example, num_classes), **{**self.defaults, **settings, **self.fixed})

    def row(self) -> dict[str, Any]:
        """Return the columns of `localprop methods --json`."""
        names = (
            "name",
            "family",
            "title",
            "year",
            "auxiliary_parameters",
            "needs_labels",
            "messages",
            "passes",
        )
        return {name: getattr(self, name) for name in (*names, "updates_in_forward", "global_error")}


def _dcl(
    name: str, title: str, fixed: dict[str, Any], auxiliary: str, messages: Any = "none", **defaults: Any
) -> Method:
    return Method(
        name,
        title,
        "dictionary contrastive",
        2024,
        citations.CHOI_2024,
        builders.dictionary_contrast,
        auxiliary,
        fixed,
        defaults,
        messages=messages,
    )


_ONE = "one dictionary, classes x width"

_TABLE = (
    Method(
        "bp",
        "Backpropagation, end to end",
        "backpropagation",
        1986,
        citations.RUMELHART_1986,
        builders.backprop,
        "none",
        messages="gradients",
        updates_in_forward=False,
        global_error=True,
    ),
    _dcl(
        "dcl",
        "DCL: one adaptive dictionary, updated block by block",
        {"update": "each"},
        _ONE,
        "shared parameters",
    ),
    _dcl("dcl-s", "DCL-S: a static dictionary", {"update": "none"}, "none"),
    _dcl(
        "dcl-averaged",
        "DCL, dictionary updated by the mean over blocks",
        {"update": "mean"},
        _ONE,
        "shared parameters",
    ),
    _dcl(
        "dcl-o",
        "DCL-O: the last hidden block alone updates the dictionary",
        {"update": "last"},
        _ONE,
        "shared parameters",
    ),
    _dcl(
        "dcl-ld",
        "DCL-LD: one dictionary a block",
        {"update": "own", "projection": "pool", "dictionary_width": None},
        "one dictionary a block, classes x block width",
    ),
    _dcl(
        "dcl-cosine",
        "DCL-COS: cosine similarity with a temperature",
        {"update": "each", "similarity": "cosine"},
        _ONE,
        "shared parameters",
        temperature=0.07,
    ),
    Method(
        "feat",
        "L_feat: supervised contrast of averaged features",
        "contrastive",
        2024,
        citations.CHOI_2024,
        builders.feature_contrast,
        "none",
    ),
    Method(
        "pred",
        "Local prediction: a linear classifier a block",
        "local error",
        2019,
        citations.NOKLAND_2019,
        builders.prediction,
        "one linear layer a block",
    ),
)

CATALOGUE: dict[str, Method] = {method.name: method for method in _TABLE}


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


def _checked(found: object, where: str) -> Method:
    if not isinstance(found, Method):
        raise ValueError(f"method: {where!r} is a {type(found).__name__}, not a localprop.methods.Method")
    return found
