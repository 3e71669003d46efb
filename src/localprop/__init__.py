"""Train deep networks in PyTorch without end-to-end backpropagation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localprop import data, methods, models, objectives, rules
    from localprop.infer.load import load
    from localprop.methods import Method
    from localprop.network import LocalNetwork
    from localprop.objectives import Objective
    from localprop.rules import Rule
    from localprop.splitting import split
    from localprop.types import BlockSpec, BlockStep, LocalBatch, LocalLoss

__version__ = "0.1.0"

__all__ = [
    "BlockSpec",
    "BlockStep",
    "LocalBatch",
    "LocalLoss",
    "LocalNetwork",
    "Method",
    "Objective",
    "Rule",
    "data",
    "load",
    "methods",
    "models",
    "objectives",
    "rules",
    "split",
]

# A public name must not be that of another submodule: importing that one would put it in the name's place.
_HOMES = {
    "BlockSpec": "types",
    "BlockStep": "types",
    "LocalBatch": "types",
    "LocalLoss": "types",
    "LocalNetwork": "network",
    "Method": "methods",
    "Objective": "objectives",
    "Rule": "rules",
    "load": "infer.load",
    "split": "splitting",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker knows the names from above, and shall complain about others

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: PyTorch takes a second that `localprop --help` can spare."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name not in _HOMES:
            return import_module(f"{__name__}.{name}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
