"""What builders of several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from localprop.objectives import CrossEntropy, Objective
from localprop.types import BlockSpec

Specs = Sequence[BlockSpec]


def objectives_of(specs: Specs, hidden: Callable[[BlockSpec], Objective]) -> list[Objective]:
    """Return the objective of every block: `hidden(spec)` of the hidden ones, and cross-entropy of the last."""
    return [*(hidden(spec) for spec in specs[:-1]), CrossEntropy(specs[-1])]


def hidden_specs(specs: Specs, chunks: int | None) -> list[BlockSpec]:
    """Return the hidden blocks' specs, flat ones with `chunks` if given."""
    hidden = list(specs[:-1])
    if chunks is None:
        return hidden
    for spec in hidden:
        if len(spec.shape) == 1 and (chunks < 1 or spec.shape[0] % chunks):
            raise ValueError(f"chunks: must divide the width {spec.shape[0]} of block {spec.name!r}, got {chunks}")
    return [replace(spec, chunks=chunks) if len(spec.shape) == 1 else spec for spec in hidden]
