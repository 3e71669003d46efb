"""Builders: each makes a rule with its objectives for a network; its keyword-only parameters are the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from localprop.functional.dictionary import Reduction, Similarity
from localprop.network import LocalNetwork
from localprop.objectives import (
    CrossEntropy,
    DictionaryContrast,
    FeatureContrast,
    LabelDictionary,
    LinearPrediction,
)
from localprop.objectives.dictionary import Initialisation, Projection
from localprop.rules import Backprop, Greedy, GreedyAveraged, Rule
from localprop.types import BlockSpec

Specs = Sequence[BlockSpec]
DictionaryUpdate = Literal["each", "mean", "last", "own", "none"]


def backprop(net: LocalNetwork, specs: Specs) -> Backprop:
    """Train by end-to-end backpropagation of the cross-entropy."""
    return Backprop(net, specs)


def dictionary_contrast(
    net: LocalNetwork,
    specs: Specs,
    *,
    update: DictionaryUpdate = "each",
    similarity: Similarity = "dot",
    temperature: float = 1.0,
    initialisation: Initialisation = "normal",
    embedding_norm: float | None = None,
    embeddings_per_class: int = 1,
    reduction: Reduction = "logsumexp",
    dictionary_width: int | None = None,
    projection: Projection = "pool",
    chunks: int | None = None,
) -> Rule:
    """Train hidden blocks by the dictionary contrastive loss, and the last block by cross-entropy.

    Args:
        net: The network.
        specs: Its blocks.
        update: Who trains the dictionary: "each" hidden block in turn; the "mean" of their gradients, once a batch;
            the "last" hidden block alone; each block its "own" dictionary; or "none", a static dictionary.
        similarity: "dot" or "cosine".
        temperature: Positive divisor of the logits.
        initialisation: "normal", or "orthogonal" embeddings.
        embedding_norm: Length of orthogonal embeddings; default sqrt(dictionary_width).
        embeddings_per_class: Embeddings of each class.
        reduction: How several embeddings make one logit: "logsumexp" or "max".
        dictionary_width: Length of an embedding; default the width of the widest hidden block.
        projection: "pool" embeddings to a block's width; or learned maps on the "label" or the "feature" side.
        chunks: Pieces that flat hidden blocks are averaged over; default what the network says.
    """
    hidden = _hidden(specs, chunks)
    widest = max((spec.channels for spec in hidden), default=1)

    def dictionary(width: int) -> LabelDictionary:
        return LabelDictionary(
            specs[-1].num_classes,
            width,
            embeddings_per_class=embeddings_per_class,
            initialisation=initialisation,
            embedding_norm=embedding_norm,
            adaptive=update != "none",
        )

    shared = None if update == "own" else dictionary(widest if dictionary_width is None else dictionary_width)
    objectives = [
        DictionaryContrast(
            spec,
            dictionary(spec.channels) if shared is None else shared,
            learns_dictionary=update != "last" or spec is hidden[-1],
            similarity=similarity,
            temperature=temperature,
            reduction=reduction,
            projection=projection,
        )
        for spec in hidden
    ]
    rule = GreedyAveraged if update == "mean" else Greedy
    return rule(net, [*objectives, CrossEntropy(specs[-1])])


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
    hidden = [FeatureContrast(spec, temperature=temperature) for spec in _hidden(specs, chunks)]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


def prediction(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048) -> Greedy:
    """Train every hidden block by a linear classifier on its pooled output.

    Args:
        net: The network.
        specs: Its blocks.
        feature_budget: Most features that a classifier reads.
    """
    hidden = [LinearPrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


def _hidden(specs: Specs, chunks: int | None) -> list[BlockSpec]:
    """Return the hidden blocks' specs, flat ones with `chunks` if given."""
    hidden = list(specs[:-1])
    if chunks is None:
        return hidden
    for spec in hidden:
        if len(spec.shape) == 1 and (chunks < 1 or spec.shape[0] % chunks):
            raise ValueError(f"chunks: must divide the width {spec.shape[0]} of block {spec.name!r}, got {chunks}")
    return [replace(spec, chunks=chunks) if len(spec.shape) == 1 else spec for spec in hidden]
