"""Windows of several blocks that overlap."""

from __future__ import annotations

from typing import Literal

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.greedy import auxiliary
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, DictionaryContrast, LabelDictionary, LinearPrediction, Objective
from localprop.rules import Overlap, Window
from localprop.types import BlockSpec

WindowObjective = Literal["linear", "mlp", "mlp-sr", "cnn", "pred", "dcl"]


def overlap(
    net: LocalNetwork,
    specs: Specs,
    *,
    blocks_per_window: int = 2,
    overlap: int = 1,
    objective: WindowObjective = "mlp-sr",
) -> Overlap:
    """Train windows of blocks by an objective at their end; blocks in two windows learn from both.

    Args:
        net: The network.
        specs: Its blocks.
        blocks_per_window: b, 1 .. number of blocks.
        overlap: o, 0 .. b - 1, the blocks that a window shares with the next one.
        objective: At the end of every window but the last: a head of decoupled greedy learning ("linear", "mlp",
            "mlp-sr", "cnn"), "pred", or "dcl" with a dictionary of its own.
    """
    if not 1 <= blocks_per_window <= len(net):
        raise ValueError(
            f"blocks_per_window: must lie in 1 .. {len(net)}, the number of blocks, got {blocks_per_window}"
        )
    if not 0 <= overlap < blocks_per_window:
        raise ValueError(f"overlap: must lie in 0 .. blocks_per_window - 1, got {overlap} of {blocks_per_window}")
    windows = []
    start = stop = 0
    while stop < len(net):
        stop = min(start + blocks_per_window, len(net))
        windows.append(Window(range(start, stop), _objective(specs[stop - 1], objective)))
        start += blocks_per_window - overlap
    return Overlap(net, specs, windows)


def _objective(spec: BlockSpec, name: WindowObjective) -> Objective:
    if spec.is_last:
        return CrossEntropy(spec)
    if name == "pred":
        return LinearPrediction(spec)
    if name == "dcl":
        return DictionaryContrast(spec, LabelDictionary(spec.num_classes, spec.channels))
    if name in ("linear", "mlp", "mlp-sr", "cnn"):
        return auxiliary(spec, name)
    raise ValueError(f"objective: must be one of linear, mlp, mlp-sr, cnn, pred, dcl, got {name!r}")


METHODS = (
    Method(
        "overlap",
        "Overlapping local updates: windows of blocks",
        "overlap",
        2020,
        paper("laskin2020parallel"),
        overlap,
        "one network a window",
        messages="gradients",
        passes=2,
        updates_in_forward=False,
    ),
)
