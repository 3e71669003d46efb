"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from localprop.functional.pooling import average_chunks, average_positions
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class Objective(nn.Module, ABC):
    """Score one block's output: `h, batch -> LocalLoss`.

    Subclasses take the block's `BlockSpec` first and named keyword hyperparameters after it.

    Args:
        spec: The block that is scored.

    Attributes:
        reads: What is scored: the block's "output", or its "activation", before closing pooling and dropout.
        needs_image: Whether the batch must carry the raw images.
    """

    __call__: Callable[..., LocalLoss]
    reads: Literal["output", "activation"] = "output"
    needs_image = False

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h`, shape (N, *spec.shape), or (N, *spec.activation_shape) if it reads the activation."""

    def logits(self, h: Tensor) -> Tensor | None:
        """Return the block's own prediction, shape (N, Z), or None if the objective makes none."""
        return None

    def updated_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that this objective's loss trains, beside the block's own."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def averaged_features(self, h: Tensor) -> Tensor:
        """Return the averaged feature vector of each sample, shape (N, C): over positions, or over the K chunks."""
        if h.dim() == 2:
            return average_chunks(h, self.spec.chunks)
        return average_positions(h, 1 if self.spec.channel_axis == 0 else -1)

    def extra_repr(self) -> str:
        """Name the block."""
        return f"block={self.spec.name!r}, channels={self.spec.channels}"
