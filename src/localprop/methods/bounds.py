"""Bounds that a method of local learning must beat: random hidden blocks, and no hidden blocks."""

from __future__ import annotations

import math

import torch
from torch import nn

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, Probe
from localprop.rules import Greedy


def frozen(net: LocalNetwork, specs: Specs, *, feature_budget: int = 2048) -> Greedy:
    """Train the last block on hidden blocks that stay as they were drawn, and read these with linear probes.

    Args:
        net: The network; the parameters of its hidden blocks stop requiring gradients.
        specs: Its blocks.
        feature_budget: Most features that a probe reads.

    Note: The running statistics of batch normalisation follow the data, as they do in every method. Left at 0 and 1
        they would switch the normalisation off in evaluation, and the bound would be too easy to beat.
    """
    for block in net.blocks[:-1]:
        block.requires_grad_(False)
    hidden = [Probe(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    return Greedy(net, [*hidden, CrossEntropy(specs[-1])])


def last_block(net: LocalNetwork, specs: Specs) -> Greedy:
    """Train a network of one block: a linear classifier on the image, in the place of all the blocks of `net`.

    Args:
        net: The network, which lends its last block's name.
        specs: Its blocks, for the shape of an image and the number of classes.
    """
    shape, num_classes = specs[0].input_shape, specs[0].num_classes
    alone = LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))], [net.names[-1]])
    return Greedy(alone, [CrossEntropy(spec) for spec in alone.specs(torch.zeros(1, *shape), num_classes)])


METHODS = (
    Method(
        "frozen",
        "Lower bound: random hidden blocks, read by linear probes",
        "bound",
        2009,
        paper("jarrett2009best"),
        frozen,
        "one linear probe a block",
        needs_labels=False,
    ),
    Method(
        "last-block",
        "Lower bound: the last block alone, on the image",
        "bound",
        1998,
        paper("lecun1998gradient"),
        last_block,
        "none",
    ),
)
