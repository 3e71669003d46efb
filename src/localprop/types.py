"""The records that pass between the rooms of localprop: frozen dataclasses, no logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

Key = tuple[int | None, str]
"""Names a parameter group: (block index, or None for a group of the whole network; group name)."""


@dataclass(frozen=True)
class BlockSpec:
    """What an objective may know of the block that it scores.

    Attributes:
        index: Position of the block, from 0.
        num_blocks: Number of blocks of the network.
        name: The block's name in the network.
        input_shape: Shape of one sample at the block's input, without the batch axis.
        shape: Shape of one sample at the block's output, without the batch axis.
        channel_axis: Axis of the channels in `shape`: 0 for (C, H, W) and (C, L), -1 for (K, C) and (H, W, C).
        chunks: K, the number of contiguous pieces a flat output is averaged over (1: no averaging).
        num_classes: Z, the number of classes, or of real-valued targets.
        activation_shape: Shape of one sample of the block's activation, which is its output before closing pooling,
            dropout and flattening; `shape` for a block without these.
        activation_channel_axis: The axis of the channels in it; default -1 for two axes, and otherwise 0.
    """

    index: int
    num_blocks: int
    name: str
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    channel_axis: int
    chunks: int
    num_classes: int
    activation_shape: tuple[int, ...]
    activation_channel_axis: int | None = None

    @property
    def standard_shape(self) -> tuple[int, ...]:
        """`shape` as objectives read it: flat (D,), tokens (K, C), for sequences too, or maps (C, H, W)."""
        if len(self.shape) == 2:
            return self.shape if self.channel_axis == -1 else self.shape[::-1]
        return self.shape if self.channel_axis == 0 else (self.shape[-1], *self.shape[:-1])

    @property
    def channels(self) -> int:
        """Width C of the averaged feature vector; a flat output of width H has C = H / K."""
        width = self.shape[self.channel_axis]
        return width // self.chunks if len(self.shape) == 1 else width

    def at_activation(self) -> BlockSpec:
        """Return the description for an objective that scores the activation: its shape stands as `shape`."""
        shape = self.activation_shape
        chunks = self.chunks if len(shape) == 1 else 1
        axis = self.activation_channel_axis
        if axis is None:
            axis = -1 if len(shape) == 2 else 0
        return replace(self, shape=shape, channel_axis=axis, chunks=chunks)

    @property
    def is_last(self) -> bool:
        """Whether this block gives the network's own logits."""
        return self.index == self.num_blocks - 1


@dataclass(frozen=True)
class LocalBatch:
    """What an objective may know of the batch.

    Attributes:
        target: Class indices, shape (N,), int64; or real numbers, shape (N, T), for objectives that take them.
        block_input: The block's detached input.
        image: The raw images in [0, 1], shape (N, C, H, W), where the method asks for them.
    """

    target: Tensor
    block_input: Tensor
    image: Tensor | None = None


@dataclass(frozen=True)
class LocalLoss:
    """One block's score.

    Attributes:
        loss: Scalar with a graph.
        logits: The block's own prediction, shape (N, Z), or None if it has none.
        logs: Further scalars to record, detached.
    """

    loss: Tensor
    logits: Tensor | None = None
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockStep:
    """One parameter group whose gradients are final. All tensors are detached.

    Attributes:
        key: The parameter group to step now.
        loss: The block's loss, or None where a rule writes gradients without one.
        logits: The block's own prediction, or None.
        output: The block's output from before its update; what the next block, or the next rank, needs.
        logs: Further scalars to record.
    """

    key: Key
    loss: Tensor | None = None
    logits: Tensor | None = None
    output: Tensor | None = None
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which some blocks are trained and the others are not.

    Attributes:
        name: What progress and records call it.
        blocks: The blocks that `Rule.steps` trains in it.
        fraction: Share of the run's steps; the fractions of a rule's phases sum to 1. A phase of fraction 0 takes no
            steps: it is prepared and finished. A rule of such phases alone is trained without optimisers.
        source: What `steps` is given: "images" for the network's inputs, or "features" for the detached outputs of the
            blocks before, in evaluation mode, which may be computed once and cached.
    """

    name: str
    blocks: range
    fraction: float = 1.0
    source: Literal["images", "features"] = "images"


@dataclass(frozen=True)
class Normalisation:
    """How images in [0, 1] became inputs: x = (image - mean) / std.

    Attributes:
        mean: Mean of every channel.
        std: Standard deviation of every channel, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class TrainingRecipe:
    """How a paper trains one kind of network on one data set.

    Attributes:
        batch_size: Images per optimiser step.
        epochs: Passes over the training set of the published run.
        lr: Learning rate at the start.
        milestones: Fractions of the run after which the learning rate is multiplied by `gamma`.
        gamma: Factor of every milestone.
        dropout: Dropout probability of the network.
        source: Where these numbers stand.
        optimizer: Name of a `torch.optim` class.
        weight_decay: Weight decay.
        optimizer_settings: Further settings of the optimiser, such as {"momentum": 0.9}.
        method_settings: Settings of the method that are published for this kind of network.
    """

    batch_size: int
    epochs: int
    lr: float
    milestones: tuple[float, ...]
    gamma: float
    dropout: float
    source: str
    optimizer: str = "AdamW"
    weight_decay: float = 0.01
    optimizer_settings: Mapping[str, object] = field(default_factory=dict)
    method_settings: Mapping[str, object] = field(default_factory=dict)
