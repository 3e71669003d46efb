"""End-to-end backpropagation, the baseline."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.rules import Backprop


def backprop(net: LocalNetwork, specs: Specs) -> Backprop:
    """Train by end-to-end backpropagation of the cross-entropy."""
    return Backprop(net, specs)


METHODS = (
    Method(
        "bp",
        "Backpropagation, end to end",
        "backpropagation",
        1986,
        paper("rumelhart1986learning"),
        backprop,
        "none",
        messages="gradients",
        updates_in_forward=False,
        global_error=True,
    ),
)
