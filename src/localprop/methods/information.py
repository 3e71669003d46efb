"""InfoPro: keep what later blocks may need of the image, and learn the label."""

from __future__ import annotations

import math
from typing import Literal

from localprop.citations import paper
from localprop.functional.information import linear_schedule
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import (
    ConvolutionalHead,
    CrossEntropy,
    HeadContrast,
    HeadPrediction,
    Objective,
    Reconstruction,
    WeightedSum,
)
from localprop.rules import Greedy
from localprop.types import BlockSpec

HeadLayers = Literal["0c1f", "0c2f", "1c1f", "1c2f", "1c3f", "2c2f"]
HEADS: dict[HeadLayers, tuple[int, int]] = {
    "0c1f": (0, 1),
    "0c2f": (0, 2),
    "1c1f": (1, 1),
    "1c2f": (1, 2),
    "1c3f": (1, 3),
    "2c2f": (2, 2),
}
"""Name -> (convolutions, linear layers)."""
EMBEDDING_WIDTH = 128


def information_propagation(
    net: LocalNetwork,
    specs: Specs,
    *,
    task: Literal["softmax", "contrast"] = "softmax",
    head: HeadLayers = "1c2f",
    reconstruction_first: float = 5.0,
    task_first: float = 0.05,
    reconstruction_last: float = 0.2,
    task_last: float = 0.5,
    temperature: float = 0.07,
) -> Greedy:
    """Train hidden blocks to keep information about the image and to gather information about the label.

    Args:
        net: The network.
        specs: Its blocks.
        task: How the label is learned: by a "softmax" classifier, or by "contrast" between samples.
        head: Layers of the task's head, as convolutions and fully connected layers; "0c1f" is a linear classifier.
        reconstruction_first: Weight of the reconstruction loss in the first block, 0 or more.
        task_first: Weight of the task's loss in the first block, 0 or more.
        reconstruction_last: Weight of the reconstruction loss in the last hidden block, with equal steps between.
        task_last: Weight of the task's loss in the last hidden block, with equal steps between.
        temperature: Positive divisor of the cosine similarities.
    """
    if head not in HEADS:
        raise ValueError(f"head: must be one of {list(HEADS)}, got {head!r}")
    ends = {
        "reconstruction_first": reconstruction_first,
        "task_first": task_first,
        "reconstruction_last": reconstruction_last,
        "task_last": task_last,
    }
    for name, weight in ends.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name}: a weight must be 0 or more and finite, got {weight}")
    hidden = specs[:-1]
    num_convolutions, num_linear = HEADS[head]
    widest = max((spec.channels for spec in hidden if len(spec.shape) == 3), default=1)

    def task_objective(spec: BlockSpec) -> Objective:
        layers = ConvolutionalHead(
            spec.standard_shape,
            spec.num_classes if task == "softmax" else EMBEDDING_WIDTH,
            num_convolutions=num_convolutions,
            num_linear=num_linear,
            widest=widest,
        )
        return (
            HeadPrediction(spec, layers) if task == "softmax" else HeadContrast(spec, layers, temperature=temperature)
        )

    def objective(spec: BlockSpec, reconstruction_weight: float, task_weight: float) -> Objective:
        if not reconstruction_weight and not task_weight:
            raise ValueError(f"task_first, task_last: block {spec.name!r} has weight 0 for both losses; raise one")
        parts: dict[str, tuple[float, Objective]] = {}
        if task_weight:
            parts["task"] = task_weight, task_objective(spec)
        if reconstruction_weight:
            parts["reconstruction"] = reconstruction_weight, Reconstruction(spec, specs[0].input_shape)
        return WeightedSum(parts)

    reconstruction_weights = linear_schedule(reconstruction_first, reconstruction_last, len(hidden))
    task_weights = linear_schedule(task_first, task_last, len(hidden))
    objectives = map(objective, hidden, reconstruction_weights, task_weights)
    return Greedy(net, [*objectives, CrossEntropy(specs[-1])])


METHODS = (
    Method(
        "infopro-softmax",
        "InfoPro: reconstruction, and a classifier's cross-entropy",
        "information",
        2021,
        paper("wang2021revisiting"),
        information_propagation,
        "one decoder and one small network a block",
        {"task": "softmax", "temperature": 0.07},
    ),
    Method(
        "infopro-contrast",
        "InfoPro: reconstruction, and supervised contrast",
        "information",
        2021,
        paper("wang2021revisiting"),
        information_propagation,
        "one decoder and one small network a block",
        {"task": "contrast"},
    ),
)
