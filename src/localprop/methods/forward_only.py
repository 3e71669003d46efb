"""Learning by forward passes: projections, competition, Hebbian updates, perturbations."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import ChannelCompetition, CrossEntropy, LinearPrediction, Probe, ProjectedGoodness
from localprop.rules import Greedy
from localprop.rules.forward_gradient import ForwardGradient, Perturbation
from localprop.rules.hebbian import SoftHebb
from localprop.rules.pepita import Pepita


def mono_forward(net: LocalNetwork, specs: Specs) -> Greedy:
    """Train every hidden block by a projection of its activities on the classes.

    Args:
        net: The network.
        specs: Its blocks.
    """
    return Greedy(net, objectives_of(specs, ProjectedGoodness))


def channel_competition(net: LocalNetwork, specs: Specs) -> Greedy:
    """Train every hidden block by the competition of groups of channels, one a class.

    Args:
        net: The network.
        specs: Its blocks.
    """
    return Greedy(net, objectives_of(specs, ChannelCompetition))


def soft_hebb(net: LocalNetwork, specs: Specs, *, temperature: float = 0.1, feature_budget: int = 2048) -> SoftHebb:
    """Train hidden layers by soft competition, and read every block by a linear probe.

    Args:
        net: The network.
        specs: Its blocks.
        temperature: Positive divisor tau of the activities that compete.
        feature_budget: Most features that a probe reads.
    """
    probes = [Probe(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return SoftHebb(net, [*probes, CrossEntropy(specs[-1])], temperature=temperature)


def forward_gradient(
    net: LocalNetwork, specs: Specs, *, perturb: Perturbation = "activities", feature_budget: int = 2048
) -> ForwardGradient:
    """Train every hidden block by random slopes of the loss of a linear classifier on its pooled output.

    Args:
        net: The network.
        specs: Its blocks.
        perturb: What the random directions move.
        feature_budget: Most features that a classifier reads.
    """
    hidden = [LinearPrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return ForwardGradient(net, [*hidden, CrossEntropy(specs[-1])], perturb=perturb)


def pepita(net: LocalNetwork, specs: Specs, *, strength: float = 0.05) -> Pepita:
    """Train every layer by how its activity changes when the error is added to the input.

    Args:
        net: The network.
        specs: Its blocks.
        strength: Scale of the random feedback from the error to the input.
    """
    return Pepita(net, specs, strength=strength)


METHODS = (
    Method(
        "mono-forward",
        "Mono-Forward: project activities on the classes",
        "forward-only",
        2025,
        paper("gong2025monoforward"),
        mono_forward,
        "one bias-free linear layer a block",
    ),
    Method(
        "cwcomp",
        "Channel-wise competition: a group of channels a class",
        "forward-only",
        2024,
        paper("papachristodoulou2024convolutional"),
        channel_competition,
        "none",
    ),
    Method(
        "softhebb",
        "SoftHebb: soft winner-take-all Hebbian learning",
        "forward-only",
        2023,
        paper("journe2023hebbian"),
        soft_hebb,
        "one linear probe a block, which trains no block",
        needs_labels=False,
        training={"weight_decay": 0.0},
    ),
    Method(
        "forward-gradient",
        "Forward gradient: random slopes of local losses",
        "forward-only",
        2023,
        paper("ren2023scaling"),
        forward_gradient,
        "one linear layer a block",
    ),
    Method(
        "pepita",
        "PEPITA: the error modulates the input of a second pass",
        "forward-only",
        2022,
        paper("dellaferrera2022error"),
        pepita,
        "none",
        messages="errors",
        training={"weight_decay": 0.0},
        passes=2,
        updates_in_forward=False,
        global_error=True,
    ),
)
