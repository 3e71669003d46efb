"""The Cascaded Forward algorithm: predictors on random blocks, or on blocks that learn by random feedback."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives.cascade import CascadeFeedback, CascadeOutput, CascadePrediction, Reading
from localprop.rules import Cascade, CascadeClosedForm


def cascade(net: LocalNetwork, specs: Specs, *, reading: Reading = "softmax", feature_budget: int = 2048) -> Cascade:
    """Train a predictor on every hidden block, which stays as it was drawn, and the last block.

    Args:
        net: The network; the parameters of its hidden blocks stop requiring gradients.
        specs: Its blocks.
        reading: "softmax" with cross-entropy, or "sparsemax" with its loss.
        feature_budget: Most features that a predictor reads.
    """
    for block in net.blocks[:-1]:
        block.requires_grad_(False)
    hidden = [CascadePrediction(spec, reading=reading, feature_budget=feature_budget) for spec in specs[:-1]]
    return Cascade(net, [*hidden, CascadeOutput(specs[-1], reading=reading)], reading=reading)


def cascade_closed_form(
    net: LocalNetwork, specs: Specs, *, ridge: float = 1e-4, feature_budget: int = 2048
) -> CascadeClosedForm:
    """Solve for a predictor on every hidden block, and for the last block's linear layer, by least squares.

    Args:
        net: The network; none of its parameters requires gradients any more.
        specs: Its blocks.
        ridge: Weight decay of the solution, relative to the features' mean square; 0 or more.
        feature_budget: Most features that a predictor reads.
    """
    hidden = [CascadePrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return CascadeClosedForm(net, [*hidden, CascadeOutput(specs[-1])], ridge=ridge)


def cascade_feedback(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048) -> Cascade:
    """Train a predictor on every hidden block, and the block by the predictor's error through a fixed random matrix.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a predictor reads.
    """
    hidden = [CascadeFeedback(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return Cascade(net, [*hidden, CascadeOutput(specs[-1])])


_FAMILY, _PREDICTORS = "forward-only", "one linear predictor a block"
_FAST = {"lr": 0.01}  # the published step of the predictors

METHODS = (
    Method(
        "cafo-ce",
        "CaFo: predictors on random blocks, by cross-entropy",
        _FAMILY,
        2023,
        paper("zhao2023cascaded"),
        cascade,
        _PREDICTORS,
        {"reading": "softmax"},
        training=_FAST,
        needs_labels=False,
    ),
    Method(
        "cafo-sparsemax",
        "CaFo: predictors on random blocks, by the sparsemax loss",
        _FAMILY,
        2023,
        paper("zhao2023cascaded"),
        cascade,
        _PREDICTORS,
        {"reading": "sparsemax"},
        training=_FAST,
        needs_labels=False,
    ),
    Method(
        "cafo-mse",
        "CaFo: predictors on random blocks, in closed form",
        _FAMILY,
        2023,
        paper("zhao2023cascaded"),
        cascade_closed_form,
        _PREDICTORS,
        needs_labels=False,
        updates_in_forward=False,
    ),
    Method(
        "cafo-dfa",
        "CaFo-DFA: blocks learn from their predictor's error through a fixed random matrix",
        _FAMILY,
        2023,
        paper("zhao2023cascaded"),
        cascade_feedback,
        _PREDICTORS,
        training={"lr": 0.005},
    ),
)
