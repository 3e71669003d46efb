"""Contrast between the samples of a batch."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs, hidden_specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import (
    CrossEntropy,
    FeatureContrast,
    HeadContrast,
    Objective,
    PooledLinear,
    Reconstruction,
    WeightedSum,
)
from localprop.objectives.base import Scored
from localprop.rules import Greedy
from localprop.types import BlockSpec


def feature_contrast(
    net: LocalNetwork, specs: Specs, *, temperature: float = 0.07, chunks: int | None = None
) -> Greedy:
    """Train hidden blocks by contrasting the samples of a batch with each other.

    Args:
        net: The network.
        specs: Its blocks.
        temperature: Positive divisor of the cosine similarities.
        chunks: Pieces that flat hidden blocks are averaged over; default what the network says.
    """
    hidden = [FeatureContrast(spec, temperature=temperature) for spec in hidden_specs(specs, chunks)]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


def head_contrast(
    net: LocalNetwork,
    specs: Specs,
    *,
    temperature: float = 0.07,
    embedding_width: int = 128,
    feature_budget: int = 2048,
    scored: Scored = "output",
) -> Greedy:
    """Train hidden blocks by contrasting the samples of a batch through a linear head.

    Args:
        net: The network.
        specs: Its blocks.
        temperature: Positive divisor of the cosine similarities.
        embedding_width: Length of the vector that a head makes of a sample.
        feature_budget: Most features that a head reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """
    hidden = [_contrast(spec, temperature, embedding_width, feature_budget, scored) for spec in specs[:-1]]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


def contrast_and_reconstruction(
    net: LocalNetwork,
    specs: Specs,
    *,
    reconstruction_weight: float = 1.0,
    temperature: float = 0.07,
    embedding_width: int = 128,
    feature_budget: int = 2048,
    scored: Scored = "output",
) -> Greedy:
    """Train hidden blocks by contrasting samples through a linear head, and by reconstructing the image.

    Args:
        net: The network.
        specs: Its blocks.
        reconstruction_weight: Positive factor of the reconstruction loss.
        temperature: Positive divisor of the cosine similarities.
        embedding_width: Length of the vector that a head makes of a sample.
        feature_budget: Most features that a head reads.
        scored: A block's "output", or its "activation" before closing pooling and dropout (published).
    """

    def objective(spec: BlockSpec) -> Objective:
        contrast = _contrast(spec, temperature, embedding_width, feature_budget, scored)
        reconstruction = Reconstruction(spec, specs[0].input_shape, scored=scored)
        return WeightedSum({"contrast": (1.0, contrast), "reconstruction": (reconstruction_weight, reconstruction)})

    return Greedy(net, objectives_of(specs, objective))


def _contrast(spec: BlockSpec, temperature: float, width: int, feature_budget: int, scored: Scored) -> HeadContrast:
    if width < 1:
        raise ValueError(f"embedding_width: must be at least 1, got {width}")
    shape = (spec.at_activation() if scored == "activation" else spec).standard_shape
    head = PooledLinear(shape, width, feature_budget=feature_budget)
    return HeadContrast(spec, head, temperature=temperature, scored=scored)


# The published heads of these networks read averages over all positions: as many features as there are channels.
_AVERAGES = {name: {"feature_budget": 1} for name in ("resnet32", "resnet110", "vit", "mixer")}

METHODS = (
    Method(
        "feat",
        "L_feat: supervised contrast of averaged features",
        "contrastive",
        2024,
        paper("choi2024dictionary"),
        feature_contrast,
        "none",
    ),
    Method(
        "contrast",
        "L_contrast: supervised contrast through a linear head",
        "contrastive",
        2021,
        paper("wang2021revisiting"),
        head_contrast,
        "one linear layer a block",
        defaults_on=_AVERAGES,
    ),
    Method(
        "contrec",
        "Supervised contrast through a linear head, and reconstruction",
        "contrastive",
        2021,
        paper("wang2021revisiting"),
        contrast_and_reconstruction,
        "one linear layer and one decoder a block",
        defaults_on=_AVERAGES,
    ),
)
