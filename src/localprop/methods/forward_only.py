"""Learning by forward passes: goodness, competition, Hebbian updates, perturbations."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from localprop.citations import paper
from localprop.errors import check_positive
from localprop.functional.goodness import Border, Reduction, symmetric_loss, threshold_loss
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import ChannelCompetition, CrossEntropy, LinearPrediction, Probe, ProjectedGoodness
from localprop.rules import Greedy
from localprop.rules.forward_forward import ForwardForward, Inference, Negatives
from localprop.rules.forward_gradient import ForwardGradient, Perturbation
from localprop.rules.hebbian import SoftHebb
from localprop.rules.labelled import ClassPattern, LabelOverlay
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


def forward_forward(
    net: LocalNetwork,
    specs: Specs,
    *,
    label: Literal["overlay", "pattern"] = "pattern",
    strength: float = 1.0,
    goodness: Reduction = "sum",
    threshold: float = 1.0,
    border: Border = "rms",
    negatives: Negatives = "uniform",
    peer_weight: float = 0.03,
    inference: Inference = "goodness",
) -> ForwardForward:
    """Train hidden blocks to be active on true labels and quiet on wrong ones.

    Args:
        net: The network.
        specs: Its blocks.
        label: How a label enters an input: written over its first pixels, or as a pattern added to all of it.
        strength: Factor of the patterns.
        goodness: Sum or mean of squared activities.
        threshold: theta a unit: a block of D activities has theta = threshold D for the sum, threshold for the mean.
        border: How activities are normalised between blocks.
        negatives: How wrong labels are drawn.
        peer_weight: Weight of peer normalisation; 0 leaves it out.
        inference: What answers: the goodness of every label, or a classifier on all activities.
    """
    check_positive("threshold", threshold)
    units = [math.prod(spec.shape) if goodness == "sum" else 1 for spec in specs[:-1]]
    return ForwardForward(
        net,
        specs,
        _label(specs, label, strength),
        [partial(threshold_loss, threshold=threshold * count) for count in units],
        reduction=goodness,
        border=border,
        negatives=negatives,
        peer_weight=peer_weight,
        inference=inference,
    )


def symba(
    net: LocalNetwork,
    specs: Specs,
    *,
    sharpness: float = 4.0,
    label: Literal["overlay", "pattern"] = "pattern",
    strength: float = 1.0,
    goodness: Reduction = "mean",
    border: Border = "rms",
    negatives: Negatives = "uniform",
    inference: Inference = "goodness",
) -> ForwardForward:
    """Train hidden blocks to be more active on a true label than on a wrong one, without a threshold.

    Args:
        net: The network.
        specs: Its blocks.
        sharpness: alpha, factor of the gap in goodness.
        label: How a label enters an input: written over its first pixels, or as a pattern added to all of it.
        strength: Factor of the patterns.
        goodness: Sum or mean of squared activities.
        border: How activities are normalised between blocks.
        negatives: How wrong labels are drawn.
        inference: What answers: the goodness of every label, or a classifier on all activities.
    """
    check_positive("sharpness", sharpness)
    return ForwardForward(
        net,
        specs,
        _label(specs, label, strength),
        [partial(symmetric_loss, sharpness=sharpness)] * (len(specs) - 1),
        reduction=goodness,
        border=border,
        negatives=negatives,
        inference=inference,
    )


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


def _label(specs: Specs, label: str, strength: float) -> LabelOverlay | ClassPattern:
    if label not in ("overlay", "pattern"):
        raise ValueError(f"label: must be 'overlay' or 'pattern', got {label!r}")
    shape, num_classes = specs[0].input_shape, specs[0].num_classes
    if label == "overlay":
        return LabelOverlay(shape, num_classes)
    return ClassPattern(shape, num_classes, strength=strength)


METHODS = (
    Method(
        "ff",
        "Forward-Forward",
        "forward-only",
        2022,
        paper("hinton2022forward"),
        forward_forward,
        "none",
        training={"batch_size": 64, "lr": 0.001},
        passes=3,
    ),
    Method(
        "symba",
        "SymBa: symmetric Forward-Forward",
        "forward-only",
        2023,
        paper("lee2023symba"),
        symba,
        "none",
        training={"batch_size": 64, "lr": 0.001},
        passes=3,
    ),
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
