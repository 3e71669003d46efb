"""Dictionary contrastive learning and its variants."""

from __future__ import annotations

from typing import Any, Literal

from localprop.citations import paper
from localprop.functional.dictionary import Reduction, Similarity
from localprop.methods.common import Specs, hidden_specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, DictionaryContrast, LabelDictionary
from localprop.objectives.dictionary import Initialisation, Projection
from localprop.rules import Greedy, GreedyAveraged, Rule

DictionaryUpdate = Literal["each", "mean", "last", "own", "none"]


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
        dictionary_width: Length of an embedding; default the width of the widest hidden block, for ResNets 512.
        projection: "pool" embeddings to a block's width; or learned maps on the "label" or the "feature" side.
        chunks: Pieces that flat hidden blocks are averaged over; default what the network says.
    """
    hidden = hidden_specs(specs, chunks)
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


# The paper keeps 512 for its ResNet, whose widest block has 64 channels.
_PUBLISHED_WIDTHS = {name: {"dictionary_width": 512} for name in ("resnet32", "resnet110")}


def _dcl(
    name: str, title: str, fixed: dict[str, Any], auxiliary: str, messages: Any = "none", **defaults: Any
) -> Method:
    return Method(
        name,
        title,
        "dictionary contrastive",
        2024,
        paper("choi2024dictionary"),
        dictionary_contrast,
        auxiliary,
        fixed,
        defaults,
        messages=messages,
        defaults_on={} if "dictionary_width" in fixed else _PUBLISHED_WIDTHS,
    )


_ONE = "one dictionary, classes x width"


METHODS = (
    _dcl(
        "dcl",
        "DCL: one adaptive dictionary, updated block by block",
        {"update": "each"},
        _ONE,
        "shared parameters",
    ),
    _dcl("dcl-s", "DCL-S: a static dictionary", {"update": "none"}, "none"),
    _dcl(
        "dcl-averaged",
        "DCL, dictionary updated by the mean over blocks",
        {"update": "mean"},
        _ONE,
        "shared parameters",
    ),
    _dcl(
        "dcl-o",
        "DCL-O: the last hidden block alone updates the dictionary",
        {"update": "last"},
        _ONE,
        "shared parameters",
    ),
    _dcl(
        "dcl-ld",
        "DCL-LD: one dictionary a block",
        {"update": "own", "projection": "pool", "dictionary_width": None},
        "one dictionary a block, classes x block width",
    ),
    _dcl(
        "dcl-cosine",
        "DCL-COS: cosine similarity with a temperature",
        {"update": "each", "similarity": "cosine"},
        _ONE,
        "shared parameters",
        temperature=0.07,
    ),
)
