"""Deeper auxiliary networks, made of the network's own later blocks or reaching over two blocks."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from localprop.citations import paper
from localprop.functional.depth import pyramid_depth, uniform_indices
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import AuxiliaryNetwork, CrossEntropy, Objective
from localprop.objectives.copies import BlockPair, copied_blocks
from localprop.objectives.heads import Head, PatchAverage, build_head, native, standard
from localprop.rules import Greedy, GreedyMomentum, Overlap, Window
from localprop.types import BlockSpec


def augmented(net: LocalNetwork, specs: Specs, *, depth: int = 3, shrink: float = 0.5) -> Greedy:
    """Train every hidden block by an auxiliary network of fresh copies of later hidden blocks.

    Args:
        net: The network.
        specs: Its blocks.
        depth: d, at least 1: copies at the first block.
        shrink: c, 0 .. 1: how fast the depth falls towards 1 at the last hidden block.
    """
    if depth < 1:
        raise ValueError(f"depth: must be at least 1, got {depth}; for a head without copies use greedy")
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink: must lie in 0 .. 1, got {shrink}")
    num_hidden = len(net) - 1
    objectives: list[Objective] = []
    for spec in specs[:-1]:
        copies = uniform_indices(spec.index, num_hidden, pyramid_depth(spec.index, len(net), depth, shrink))
        chain = copied_blocks(spec, [(net.blocks[index], specs[index]) for index in copies])
        objectives.append(AuxiliaryNetwork(spec, chain))
    return Greedy(net, [*objectives, CrossEntropy(specs[-1])])


def momentum_auxiliary(
    net: LocalNetwork, specs: Specs, *, head: Head = "mlp-sr", momentum: float = 0.995
) -> GreedyMomentum:
    """Train every hidden block through two copies of the next one: a trained one, and one that follows it slowly.

    Args:
        net: The network.
        specs: Its blocks.
        head: The network behind the copies.
        momentum: m, 0 .. 1, of the copy that follows.
    """
    objectives: list[Objective] = []
    pairs = {}
    for spec, later in pairwise(specs[:-1]):
        pairs[spec.index] = BlockPair(net.blocks[later.index])
        chain = nn.Sequential(
            *native(spec), pairs[spec.index], *standard(later), build_head(head, later.standard_shape)
        )
        objectives.append(AuxiliaryNetwork(spec, chain))
    for spec in specs[-2:-1]:  # behind the last hidden block comes the classifier, which gives no features to go on
        objectives.append(AuxiliaryNetwork(spec, build_head(head, spec.standard_shape)))
    return GreedyMomentum(net, [*objectives, CrossEntropy(specs[-1])], pairs, momentum=momentum)


def hierarchical(
    net: LocalNetwork,
    specs: Specs,
    *,
    head: Head = "mlp-sr",
    patches: int = 2,
    independent_weight: float = 0.001,
    cascade_weight: float = 0.999,
) -> Overlap:
    """Train every block by itself and together with the block before it.

    Args:
        net: The network.
        specs: Its blocks.
        head: The network at every block, one for each of its two losses.
        patches: n: the head runs on n x n patches of a map and its outputs are averaged; 1 reads the map whole.
        independent_weight: Positive weight of a block's loss by itself.
        cascade_weight: Positive weight of its loss together with the block before.
    """
    for name, weight in (("independent_weight", independent_weight), ("cascade_weight", cascade_weight)):
        if not weight > 0:
            raise ValueError(f"{name}: must be positive, got {weight}")

    def objective(spec: BlockSpec) -> Objective:
        if spec.is_last:
            return CrossEntropy(spec)
        return AuxiliaryNetwork(spec, PatchAverage(head, spec.standard_shape, patches))

    windows = []
    for index, spec in enumerate(specs):
        windows.append(Window(range(index, index + 1), objective(spec), independent_weight))
        if index > 0:
            windows.append(Window(range(index - 1, index + 1), objective(spec), cascade_weight))
    return Overlap(net, specs, windows)


METHODS = (
    Method(
        "auglocal",
        "AugLocal: auxiliary networks of copies of later blocks",
        "auxiliary network",
        2024,
        paper("ma2024scaling"),
        augmented,
        "copies of up to d later blocks, and one linear layer, a block",
    ),
    Method(
        "man",
        "MAN: a momentum copy and a trained copy of the next block",
        "auxiliary network",
        2024,
        paper("su2024momentum"),
        momentum_auxiliary,
        "one copy of the next block and one network a block; a second copy follows the next block",
        messages="shared parameters",
    ),
    Method(
        "hpff",
        "HPFF: independent and cascaded losses on patches",
        "auxiliary network",
        2024,
        paper("su2024hpff"),
        hierarchical,
        "two networks a block",
        messages="gradients",
        passes=3,
        updates_in_forward=False,
    ),
)
