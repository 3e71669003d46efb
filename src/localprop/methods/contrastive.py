"""Contrast between the samples of a batch."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs, hidden_specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, FeatureContrast
from localprop.rules import Greedy


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
)
