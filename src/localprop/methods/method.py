"""One row of the catalogue: a paper's name bound to a rule, its settings and a citation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from localprop.errors import nearest
from localprop.network import LocalNetwork
from localprop.rules import Rule


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
        training: Fields of `TrainingRecipe` in which the method's training differs from that of the network.
        needs_labels: Whether hidden blocks learn from labels. (Probes, and the last block, always read them.)
        messages: What crosses blocks beside activations: "none", "shared parameters", "gradients", "losses" (one a
            sample), "targets", "states" (of later blocks) or "errors" (of the logits).
        passes: Forward passes through a hidden block in one step, as many as the second block runs.
        updates_in_forward: Whether a block is updated before the next block runs.
        global_error: Whether the error of the last block reaches hidden blocks.
        real_targets: Whether it also trains on real-valued targets, shape (N, T); `num_classes` is T then, 1 or more.
        defaults_on: Defaults that are published for networks of the catalogue of models: network's name -> settings.
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
    training: Mapping[str, Any] = field(default_factory=dict)
    needs_labels: bool = True
    messages: Literal["none", "shared parameters", "gradients", "losses", "targets", "states", "errors"] = "none"
    passes: int = 1
    updates_in_forward: bool = True
    global_error: bool = False
    real_targets: bool = False
    defaults_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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
            num_classes: Z, or the number of real-valued targets.
            example: A batch of inputs, for the shapes; one sample is enough.
            settings: See `settings()`.

        Raises:
            ValueError: A model that is not split, an unknown setting, or one out of its range.
        """
        if not isinstance(net, LocalNetwork):
            raise ValueError(f"net: need the network as blocks, got {type(net).__name__}; use localprop.split(model)")
        allowed = self.settings()
        for name in settings:
            if name not in allowed:
                raise ValueError(
                    f"{name}: not a setting of method {self.name!r}{nearest(name, allowed)}; "
                    f"it has {list(allowed) or 'none'}"
                )
        defaults = {**self.defaults, **self.defaults_on.get(net.architecture or "", {})}
        specs = net.specs(example, num_classes, fewest=1 if self.real_targets else 2)
        return self.builder(net, specs, **{**defaults, **settings, **self.fixed})

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
