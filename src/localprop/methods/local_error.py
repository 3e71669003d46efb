"""Local error signals: classifiers and similarity matching at every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from localprop.citations import paper
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import (
    CodePrediction,
    CodeSimilarity,
    LabelCode,
    LinearPrediction,
    LinearRegression,
    Objective,
    SimilarityMatching,
    SquaredError,
    WeightedSum,
)
from localprop.objectives.base import Scored
from localprop.rules import Greedy
from localprop.types import BlockSpec


def prediction(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048, scored: Scored = "output") -> Greedy:
    """Train every hidden block by a linear classifier on its pooled output.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a classifier reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """
    return Greedy(
        net, objectives_of(specs, lambda spec: LinearPrediction(spec, feature_budget=feature_budget, scored=scored))
    )


def similarity(net: LocalNetwork, specs: Specs, *, scored: Scored = "output") -> Greedy:
    """Train every hidden block so that its samples are as similar to each other as their labels.

    Args:
        net: The network.
        specs: Its blocks.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """
    return Greedy(net, objectives_of(specs, lambda spec: SimilarityMatching(spec, scored=scored)))


def prediction_and_similarity(
    net: LocalNetwork, specs: Specs, *, beta: float = 0.99, feature_budget: int = 2048, scored: Scored = "output"
) -> Greedy:
    """Train every hidden block by a linear classifier and by similarity matching.

    Args:
        net: The network.
        specs: Its blocks.
        beta: Weight of the similarity loss, between 0 and 1; the classifier's loss has 1 - beta.
        feature_budget: Most features that a classifier reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """

    def objective(spec: BlockSpec) -> Objective:
        classifier = LinearPrediction(spec, feature_budget=feature_budget, scored=scored, zero_classifier=True)
        return _mixed(beta, classifier, SimilarityMatching(spec, scored=scored))

    return Greedy(net, objectives_of(specs, objective))


def regression(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048, scored: Scored = "output") -> Greedy:
    """Train every hidden block by the squared error of a linear layer on its pooled output, and the last by its own.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a linear layer reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout.
    """
    hidden = [LinearRegression(spec, feature_budget=feature_budget, scored=scored) for spec in specs[:-1]]
    return Greedy(net, [*hidden, SquaredError(specs[-1])])


def code_prediction(
    net: LocalNetwork, specs: Specs, *, code_width: int = 128, feature_budget: int = 2048, scored: Scored = "output"
) -> Greedy:
    """Train every hidden block to predict a random code of the label, with the error sent back by fixed weights.

    Args:
        net: The network.
        specs: Its blocks.
        code_width: Length of a label's random code.
        feature_budget: Most features that a decoder reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """

    def objective(spec: BlockSpec) -> Objective:
        code = LabelCode(spec.num_classes, code_width)
        return CodePrediction(spec, code, feature_budget=feature_budget, scored=scored)

    return Greedy(net, objectives_of(specs, objective))


def code_similarity(
    net: LocalNetwork, specs: Specs, *, code_width: int = 128, feature_budget: int = 2048, scored: Scored = "output"
) -> Greedy:
    """Train every hidden block so that its samples are as similar to each other as random codes of their labels.

    Args:
        net: The network.
        specs: Its blocks.
        code_width: Length of a label's random code.
        feature_budget: Most features that the pooling leaves.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """

    def objective(spec: BlockSpec) -> Objective:
        code = LabelCode(spec.num_classes, code_width)
        return CodeSimilarity(spec, code, feature_budget=feature_budget, scored=scored)

    return Greedy(net, objectives_of(specs, objective))


def code_prediction_and_similarity(
    net: LocalNetwork,
    specs: Specs,
    *,
    beta: float = 0.01,
    code_width: int = 128,
    feature_budget: int = 2048,
    scored: Scored = "output",
) -> Greedy:
    """Train every hidden block to predict a random code of the label and to be as similar as the codes are.

    Args:
        net: The network.
        specs: Its blocks.
        beta: Weight of the similarity loss, between 0 and 1; the prediction's loss has 1 - beta.
        code_width: Length of a label's random code.
        feature_budget: Most features that a decoder reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """

    def objective(spec: BlockSpec) -> Objective:
        code = LabelCode(spec.num_classes, code_width)
        decoder = CodePrediction(spec, code, feature_budget=feature_budget, scored=scored)
        return _mixed(beta, decoder, CodeSimilarity(spec, code, feature_budget=feature_budget, scored=scored))

    return Greedy(net, objectives_of(specs, objective))


def _mixed(beta: float, prediction: Objective, similarity: Objective) -> WeightedSum:
    if not 0 < beta < 1:
        raise ValueError(f"beta: must lie between 0 and 1, got {beta}; pred and sim are the two ends")
    return WeightedSum({"prediction": (1 - beta, prediction), "similarity": (beta, similarity)})


def _row(name: str, title: str, builder: Callable[..., Greedy], auxiliary: str) -> Method:
    return Method(name, title, "local error", 2019, paper("nokland2019training"), builder, auxiliary)


_LINEAR = "one linear layer a block"

METHODS = (
    _row("pred", "Local prediction: a linear classifier a block", prediction, _LINEAR),
    _row("sim", "Local similarity matching", similarity, "one 3x3 convolution or linear layer a block"),
    _row(
        "predsim",
        "Local prediction and similarity matching",
        prediction_and_similarity,
        "one linear layer and one 3x3 convolution or linear layer a block",
    ),
    _row(
        "pred-bpf",
        "Backprop-free local prediction: random label codes, feedback alignment",
        code_prediction,
        _LINEAR,
    ),
    _row("sim-bpf", "Backprop-free local similarity matching: random label codes", code_similarity, "none"),
    _row(
        "predsim-bpf",
        "Backprop-free local prediction and similarity matching",
        code_prediction_and_similarity,
        _LINEAR,
    ),
    replace(
        _row("regression", "Local regression: the squared error of a linear layer a block", regression, _LINEAR),
        real_targets=True,
    ),
)
