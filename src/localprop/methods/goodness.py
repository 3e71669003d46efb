"""Methods of goodness: blocks that are active, or quiet, on images with their true label."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from localprop.citations import paper
from localprop.errors import check_positive
from localprop.functional.goodness import Border, Reduction, symmetric_loss, threshold_loss
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.rules.forward_forward import ForwardForward, Inference, Negatives
from localprop.rules.labelled import ClassPattern, LabelOverlay
from localprop.rules.predictive import PredictiveForwardForward


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


def predictive_forward_forward(
    net: LocalNetwork,
    specs: Specs,
    *,
    rounds: int = 12,
    goodness: Reduction = "mean",
    threshold: float = 0.3,
    border: Border = "rms",
    dampening: float = 0.3,
    context_scale: float = 5.0,
    group: int = 10,
    noise: float = 0.01,
    generator_noise: float = 0.025,
    latent: int = 20,
    latent_rate: float = 0.025,
) -> PredictiveForwardForward:
    """Train hidden blocks as a recurrent circuit that is quiet on true labels, beside one that predicts its states.

    Args:
        net: The network.
        specs: Its blocks.
        rounds: K, updates of all blocks and generators in a batch.
        goodness: Sum or mean of squared activities.
        threshold: theta a unit: a block of D activities has theta = threshold D for the sum, threshold for the mean.
        border: How activities are normalised between blocks.
        dampening: alpha, share of a state that stays from round to round.
        context_scale: Scale of the label that the top block sees above itself.
        group: Units that compete with each other.
        noise: Standard deviation of the states' noise.
        generator_noise: Standard deviation of the noise of what generators read.
        latent: Size of the vector that predicts the top block.
        latent_rate: Length of this vector's gradient step in a round.
    """
    return PredictiveForwardForward(
        net,
        specs,
        rounds=rounds,
        threshold=threshold,
        reduction=goodness,
        border=border,
        dampening=dampening,
        context_scale=context_scale,
        group=group,
        noise=noise,
        generator_noise=generator_noise,
        latent=latent,
        latent_rate=latent_rate,
    )


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
        "pff",
        "Predictive Forward-Forward: a recurrent circuit and its predictions",
        "forward-only",
        2023,
        paper("ororbia2023predictive"),
        predictive_forward_forward,
        "top-down, lateral and generative weights a block",
        training={"optimizer": "Adam", "lr": 0.001, "weight_decay": 0.0, "batch_size": 64},
        messages="states",
        passes=25,
        updates_in_forward=False,
    ),
)
