"""Greedy and decoupled greedy learning: an auxiliary network a block, and its further targets."""

from __future__ import annotations

from localprop.citations import paper
from localprop.functional.targets import spaced
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork, body_and_tail
from localprop.objectives import (
    AuxiliaryNetwork,
    CoarsePrediction,
    CrossEntropy,
    ImagePrediction,
    RotationPrediction,
)
from localprop.objectives.heads import Head, build_head
from localprop.objectives.image import Upsampling
from localprop.rules import Greedy, GreedyMixed, GreedyRotated
from localprop.types import BlockSpec


def decoupled(net: LocalNetwork, specs: Specs, *, head: Head = "mlp-sr") -> Greedy:
    """Train every hidden block by an auxiliary network on its output.

    Args:
        net: The network.
        specs: Its blocks.
        head: The auxiliary network: "linear", "mlp", "mlp-sr" or "cnn".
    """
    return Greedy(net, objectives_of(specs, lambda spec: auxiliary(spec, head)))


def decoupled_image(
    net: LocalNetwork,
    specs: Specs,
    *,
    head: Head = "mlp-sr",
    first_shift: int = 0,
    last_shift: int = 0,
    prediction_weight: float = 0.9,
    image_weight: float = 0.1,
    upsampling: Upsampling = "learned",
) -> Greedy:
    """Train hidden blocks to name the class and to draw the image, which may be moved further from block to block.

    Args:
        net: The network.
        specs: Its blocks.
        head: The network that predicts the class.
        first_shift: Pixels by which the first hidden block's target is moved along both axes.
        last_shift: The same for the last hidden block; those between are spaced evenly.
        prediction_weight: Weight of the class; at 0 it is only read, and blocks learn from the image alone.
        image_weight: Weight of the image.
        upsampling: "learned" or "bilinear".
    """
    image_shape = _image_shape(specs)
    num_hidden = len(specs) - 1

    def objective(spec: BlockSpec) -> ImagePrediction:
        return ImagePrediction(
            spec,
            body_and_tail(net.blocks[spec.index])[1],
            auxiliary(spec, head),
            image_shape=image_shape,
            shift=spaced(spec.index, num_hidden, first_shift, last_shift),
            prediction_weight=prediction_weight,
            image_weight=image_weight,
            upsampling=upsampling,
        )

    return Greedy(net, objectives_of(specs, objective))


def decoupled_rotation(
    net: LocalNetwork, specs: Specs, *, head: Head = "mlp-sr", rotation_weight: float = 1.0
) -> GreedyRotated:
    """Train hidden blocks to name the class, and to tell by how much copies of the images were turned.

    Args:
        net: The network.
        specs: Its blocks.
        head: The networks that predict class and turn, one each.
        rotation_weight: Positive weight of the turn's cross-entropy.
    """
    _, height, width = _image_shape(specs)
    if height != width:
        raise ValueError(f"image_shape: only square images can be turned by a quarter, got {height} x {width} pixels")

    def objective(spec: BlockSpec) -> RotationPrediction:
        rotation = AuxiliaryNetwork(spec, build_head(head, spec.standard_shape), num_targets=4)
        return RotationPrediction(spec, auxiliary(spec, head), rotation, weight=rotation_weight)

    last = RotationPrediction(specs[-1], CrossEntropy(specs[-1]), None)
    return GreedyRotated(net, [*(objective(spec) for spec in specs[:-1]), last])


def decoupled_mixed(net: LocalNetwork, specs: Specs, *, head: Head = "mlp-sr", last_weight: float = 0.5) -> GreedyMixed:
    """Train hidden blocks by a mixture of their own error and the last block's, at the logits.

    Args:
        net: The network.
        specs: Its blocks.
        head: The auxiliary network.
        last_weight: Share of the last block's error, 0 .. 1.
    """
    return GreedyMixed(net, objectives_of(specs, lambda spec: auxiliary(spec, head)), last_weight=last_weight)


def decoupled_coarse(net: LocalNetwork, specs: Specs, *, head: Head = "mlp-sr", first_groups: int = 2) -> Greedy:
    """Train hidden blocks to tell apart groups of classes, more of them from block to block.

    Args:
        net: The network.
        specs: Its blocks.
        head: The auxiliary network.
        first_groups: Number of groups at the first block, 2 .. Z; they grow evenly to all Z classes at the last block.
    """
    num_classes = specs[0].num_classes
    if not 2 <= first_groups <= num_classes:
        raise ValueError(f"first_groups: must lie in 2 .. {num_classes}, the number of classes, got {first_groups}")

    def objective(spec: BlockSpec) -> CoarsePrediction:
        num_groups = spaced(spec.index, spec.num_blocks, first_groups, num_classes)
        return CoarsePrediction(spec, build_head(head, spec.standard_shape), num_groups=num_groups)

    return Greedy(net, objectives_of(specs, objective))


def auxiliary(spec: BlockSpec, head: Head) -> AuxiliaryNetwork:
    """Build the auxiliary network of one block."""
    return AuxiliaryNetwork(spec, build_head(head, spec.standard_shape))


def _image_shape(specs: Specs) -> tuple[int, int, int]:
    shape = specs[0].input_shape
    if len(shape) != 3:
        raise ValueError(f"example: the method needs images of shape (channels, height, width), got samples of {shape}")
    return shape


_HEAD = "one network a block"
_SHIFTS = ("first_shift", "last_shift")
_DGL = paper("belilovsky2020decoupled")

METHODS = (
    Method(
        "greedy",
        "Greedy learning: a linear head a block",
        "greedy",
        2019,
        paper("belilovsky2019greedy"),
        decoupled,
        "one linear layer a block",
        fixed={"head": "linear"},
    ),
    Method("dgl", "Decoupled greedy learning", "greedy", 2020, _DGL, decoupled, _HEAD),
    Method(
        "dgl-image",
        "DGL, each block also draws the image",
        "greedy",
        2020,
        _DGL,
        decoupled_image,
        "one network and one decoder a block",
        fixed=dict.fromkeys(_SHIFTS, 0),
    ),
    Method(
        "dgl-shift",
        "DGL, each block also draws the image, moved further from block to block",
        "greedy",
        2020,
        _DGL,
        decoupled_image,
        "one network and one decoder a block",
        defaults=dict(zip(_SHIFTS, (5, 16), strict=True)),
    ),
    Method(
        "dgl-rotation",
        "DGL, each block also tells by how much images were turned",
        "greedy",
        2018,
        paper("gidaris2018unsupervised"),
        decoupled_rotation,
        "two networks a block",
        passes=2,
    ),
    Method(
        "dgl-mixed",
        "DGL, the last block's error mixed into every local one",
        "greedy",
        2020,
        _DGL,
        decoupled_mixed,
        _HEAD,
        messages="gradients",
        passes=2,
        updates_in_forward=False,
        global_error=True,
    ),
    Method(
        "dgl-coarse",
        "DGL, groups of classes that grow from block to block",
        "greedy",
        2020,
        _DGL,
        decoupled_coarse,
        "one network and one linear probe a block",
    ),
)
