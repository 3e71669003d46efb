"""Decoupled interfaces: what a later block would send back is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, LinearPrediction
from localprop.rules import LocalCritic, SyntheticGradients
from localprop.rules.predictors import Synthesiser, input_predictor


def synthetic_gradients(
    net: LocalNetwork,
    specs: Specs,
    *,
    conditioned: bool = False,
    unlocked: bool = False,
    hidden: int | None = None,
    kernel: int = 5,
    hidden_lr: float = 1.0,
) -> SyntheticGradients:
    """Train hidden blocks by predicted gradients, and the last block by cross-entropy.

    Args:
        net: The network.
        specs: Its blocks.
        conditioned: Whether the predictors of gradients see the label.
        unlocked: Whether a block runs on a prediction of its input.
        hidden: Hidden channels of the predictors; default as many as what they predict.
        kernel: Odd size of their convolutions.
        hidden_lr: Learning rate of hidden blocks as a multiple of that of the last block and the predictors.
    """
    synthesisers = [Synthesiser(spec, hidden=hidden, kernel=kernel, conditioned=conditioned) for spec in specs[:-1]]
    inputs = [
        input_predictor(spec, specs[0].input_shape, hidden=hidden, kernel=kernel)
        for spec in (specs[1:] if unlocked else ())
    ]
    return SyntheticGradients(net, specs, synthesisers, inputs, hidden_lr=hidden_lr)


def local_critic(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048) -> LocalCritic:
    """Train hidden blocks by critics that learn to have the loss of the next exit.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a critic reads.
    """
    critics = [LinearPrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return LocalCritic(net, critics, CrossEntropy(specs[-1]))


def _dni(name: str, title: str, auxiliary: str, fixed: Mapping[str, Any], defaults: Mapping[str, Any]) -> Method:
    return Method(
        name,
        title,
        "synthetic gradients",
        2017,
        paper("jaderberg2017decoupled"),
        synthetic_gradients,
        auxiliary,
        fixed,
        defaults,
        messages="gradients",
    )


# Faster, hidden blocks run ahead of predictors that know little of the label, or of the input.
_SLOW = {"hidden_lr": 0.1}


METHODS = (
    _dni(
        "dni",
        "DNI: synthetic gradients",
        "one gradient predictor a hidden block",
        {"conditioned": False, "unlocked": False},
        _SLOW,
    ),
    _dni(
        "cdni",
        "cDNI: synthetic gradients that see the label",
        "one gradient predictor a hidden block",
        {"conditioned": True, "unlocked": False},
        {},
    ),
    _dni(
        "dni-unlocked",
        "DNI with synthetic inputs too",
        "one gradient predictor a hidden block, one input predictor a block but the first",
        {"unlocked": True},
        {"conditioned": True, **_SLOW},
    ),
    Method(
        "local-critic",
        "Local critics: losses that learn to be the next one",
        "synthetic gradients",
        2018,
        paper("lee2018local"),
        local_critic,
        "one linear critic a hidden block",
        messages="losses",
    ),
)
