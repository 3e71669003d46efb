"""Training layer after layer: each block to its end before the next begins."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import AuxiliaryNetwork, CrossEntropy
from localprop.objectives.heads import build_deep_head
from localprop.rules import Layerwise


def layerwise(net: LocalNetwork, specs: Specs, *, aux_depth: int = 1) -> Layerwise:
    """Train block after block, each by an auxiliary network on its output, and then the last block.

    Args:
        net: The network.
        specs: Its blocks.
        aux_depth: Layers of an auxiliary network, 1 .. 3.
    """
    if not 1 <= aux_depth <= 3:
        raise ValueError(f"aux_depth: must be 1, 2 or 3, got {aux_depth}")
    hidden = [AuxiliaryNetwork(spec, build_deep_head(spec.shape, aux_depth)) for spec in specs[:-1]]
    return Layerwise(net, [*hidden, CrossEntropy(specs[-1])])


METHODS = (
    Method(
        "layerwise",
        "Greedy layerwise training: one block after another",
        "greedy",
        2019,
        paper("belilovsky2019greedy"),
        layerwise,
        "one network of 1 to 3 layers a block",
        training={
            "optimizer": "SGD",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "optimizer_settings": {"momentum": 0.9},
            "milestones": (0.3, 0.6, 0.9),
            "gamma": 0.2,
        },
    ),
)
