"""Local error signals: classifiers and similarity matching at every block."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, LinearPrediction
from localprop.rules import Greedy


def prediction(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048) -> Greedy:
    """Train every hidden block by a linear classifier on its pooled output.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a classifier reads.
    """
    hidden = [LinearPrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


METHODS = (
    Method(
        "pred",
        "Local prediction: a linear classifier a block",
        "local error",
        2019,
        paper("nokland2019training"),
        prediction,
        "one linear layer a block",
    ),
)
