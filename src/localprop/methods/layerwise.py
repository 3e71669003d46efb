"""Training layer after layer: each block to its end before the next begins."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import AuxiliaryNetwork, LinearPrediction
from localprop.objectives.heads import build_deep_head
from localprop.rules import Clusters, Layerwise


def layerwise(net: LocalNetwork, specs: Specs, *, aux_depth: int = 1) -> Layerwise:
    """Train block after block, each by an auxiliary network on its output, and then the last block.

    Args:
        net: The network.
        specs: Its blocks.
        aux_depth: Layers of an auxiliary network, 1 .. 3.
    """
    if not 1 <= aux_depth <= 3:
        raise ValueError(f"aux_depth: must be 1, 2 or 3, got {aux_depth}")
    return Layerwise(
        net, objectives_of(specs, lambda spec: AuxiliaryNetwork(spec, build_deep_head(spec.standard_shape, aux_depth)))
    )


def clusters(
    net: LocalNetwork,
    specs: Specs,
    *,
    clusters: int = 128,
    samples: int = 16384,
    iterations: int = 20,
    feature_budget: int = 2048,
) -> Clusters:
    """Train block after block by a linear classifier on its pooled output, and pass each position on as its cluster.

    Args:
        net: The network.
        specs: Its blocks.
        clusters: K, clusters of the positions of a block's outputs.
        samples: Positions that are clustered, drawn from all of the training set.
        iterations: Most moves of the centres.
        feature_budget: Most features that a classifier reads.
    """
    objectives = objectives_of(specs, lambda spec: LinearPrediction(spec, feature_budget=feature_budget))
    return Clusters(net, objectives, clusters=clusters, samples=samples, iterations=iterations)


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
    Method(
        "clusters",
        "Layer-wise clustering: each position is passed on as its cluster",
        "greedy",
        2018,
        paper("malach2018provably"),
        clusters,
        "one linear layer a block",
        training={"lr": 0.005},
    ),
)
