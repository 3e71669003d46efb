"""The network as a chain of blocks, and the only place that cuts the graph between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from localprop.types import BlockSpec


def _no_context(block: int) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


class LocalNetwork(nn.Module):
    """Chain blocks so that a rule can train each of them by itself.

    As a plain module it is the unsplit network: `network(x)` runs the blocks one after another, and gradients flow
    through all of them.

    A block that ends in a flat output may carry an integer attribute `feature_chunks` (K): local objectives then
    average its output over K contiguous pieces.

    Args:
        blocks: The blocks in order. Each must have parameters.
        names: One unique name a block. Default: "0", "1", ...

    Raises:
        ValueError: No blocks, a block without parameters, or names that do not fit.
    """

    def __init__(self, blocks: Sequence[nn.Module], names: Sequence[str] | None = None) -> None:
        super().__init__()
        names = [str(i) for i in range(len(blocks))] if names is None else list(names)
        if not blocks:
            raise ValueError("blocks: a network needs at least one block, got none")
        if len(names) != len(blocks) or len(set(names)) != len(names):
            raise ValueError(f"names: need {len(blocks)} different names, got {names}")
        for name, block in zip(names, blocks, strict=True):
            if not any(True for _ in block.parameters()):
                raise ValueError(
                    f"blocks: block {name!r} ({type(block).__name__}) has no parameters, so there is nothing to train "
                    "in it; join it to the block before it"
                )
        self.blocks = nn.ModuleList(blocks)
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks with one graph, shape (N, ...) -> (N, Z)."""
        for block in self.blocks:
            x = block(x)
        return x

    def iter_blocks(
        self,
        x: Tensor,
        *,
        blocks: range | None = None,
        input_grad: bool = False,
        boundary: Callable[[Tensor], Tensor] | None = None,
        context: Callable[[int], AbstractContextManager[None]] = _no_context,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Run block after block, each on a detached input, and hand out (index, input, output).

        The next block runs only when the caller asks for it, so the caller can finish a block's backward pass before
        another graph exists.

        Args:
            x: Input of the first of `blocks`.
            blocks: Which blocks to run; default all.
            input_grad: Make each block's input a leaf that collects a gradient.
            boundary: Applied to what crosses a border, for example a normalisation.
            context: Entered around each block's forward pass alone, never around a yield.
        """
        h = x.detach()
        for index in range(len(self)) if blocks is None else blocks:
            block_input = h.requires_grad_() if input_grad and h.is_floating_point() else h
            with context(index):
                output = self.blocks[index](block_input)
            h = output.detach()
            yield index, block_input, output
            del output  # its graph must be gone before the next block runs
            if boundary is not None:
                h = boundary(h)

    def specs(self, example: Tensor, num_classes: int) -> tuple[BlockSpec, ...]:
        """Describe every block by running `example` through the network once, in evaluation mode, without a graph.

        Args:
            example: A batch of inputs, shape (N, ...); one sample is enough.
            num_classes: Z, the number of classes.

        Raises:
            ValueError: The network cannot run on the example, or its last block does not give `num_classes` logits.
        """
        if num_classes < 2:
            raise ValueError(f"num_classes: need at least 2 classes to tell apart, got {num_classes}")
        training = {module: module.training for module in self.modules()}
        self.eval()
        specs = []
        try:
            with torch.no_grad():
                for index, x, h in self.iter_blocks(example):
                    specs.append(self._spec(index, x, h, num_classes))
        except RuntimeError as error:
            raise ValueError(
                f"example: block {self.names[len(specs)]!r} does not take inputs of shape "
                f"{tuple(example.shape)}: {error}"
            ) from error
        finally:
            for module, mode in training.items():
                module.training = mode
        if specs[-1].shape != (num_classes,):
            raise ValueError(
                f"num_classes: the last block must give {num_classes} logits a sample, "
                f"got an output of shape {specs[-1].shape}"
            )
        return tuple(specs)

    def _spec(self, index: int, x: Tensor, h: Tensor, num_classes: int) -> BlockSpec:
        shape = tuple(h.shape[1:])
        chunks = int(getattr(self.blocks[index], "feature_chunks", 1)) if len(shape) == 1 else 1
        if shape and shape[0] % chunks:
            raise ValueError(
                f"feature_chunks: block {self.names[index]!r} has width {shape[0]}, not a multiple of {chunks}"
            )
        # Two axes are tokens (K, C), the shape of ViT and Mixer blocks; all else has its channels first.
        axis = -1 if len(shape) == 2 else 0
        return BlockSpec(index, len(self), self.names[index], tuple(x.shape[1:]), shape, axis, chunks, num_classes)
