"""The network as a chain of blocks, and the only place that cuts the graph between them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from localprop.errors import nearest
from localprop.fusing import run_fused
from localprop.layout import channel_axis
from localprop.types import BlockSpec
from localprop.watch import ChannelWatch

_TAIL = (_DropoutNd, _MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd, nn.Flatten, nn.Identity)


def no_context(block: int) -> AbstractContextManager[None]:
    """Return a context that does nothing."""
    return contextlib.nullcontext()


class BlockPass(NamedTuple):
    """One block's forward pass.

    Attributes:
        block: Its index.
        input: Its detached input.
        h: What is scored, with the block's graph: its output, or its activation (see `body_and_tail`).
        output: Its detached output, which the next block gets.
    """

    block: int
    input: Tensor
    h: Tensor
    output: Tensor


class LocalNetwork(nn.Module):
    """Chain blocks so that a rule can train each of them by itself.

    As a plain module it is the unsplit network: `network(x)` runs the blocks one after another, and gradients flow
    through all of them.

    A block that ends in a flat output may carry an integer attribute `feature_chunks` (K): local objectives then
    average its output over K contiguous pieces. A block may say by an integer attribute `channel_axis` whether the
    channels of its output are a sample's first axis, 0, or its last, -1; see `localprop.layout.channel_axis`.

    Args:
        blocks: The blocks in order. Each must have parameters.
        names: One unique name a block. Default: "0", "1", ...
        architecture: Name of the network in the catalogue of models, if it is one of these: methods may have settings
            that are published for it.

    Attributes:
        runs_whole: Whether blocks run only one after another in a pass through all, as where `split` cuts a model while
            it runs.

    Raises:
        ValueError: No blocks, a block without parameters, or names that do not fit.
    """

    runs_whole = False

    def __init__(
        self, blocks: Sequence[nn.Module], names: Sequence[str] | None = None, architecture: str | None = None
    ) -> None:
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
        self.architecture = architecture
        self.frozen: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.blocks)

    def freeze(self, blocks: Iterable[str | int]) -> None:
        """Train these blocks no more: their parameters take no gradient, and they stay in evaluation mode.

        So batch normalisation keeps its running statistics, and dropout is off. Objectives at a frozen block still
        learn to read it. Call it before the method is built.

        Args:
            blocks: Names of blocks, or their numbers, from 0.

        Raises:
            ValueError: There is no such block, or none is left to train.
        """
        for block in blocks:
            index = self.names.index(block) if block in self.names else int(block) if str(block).isdecimal() else -1
            if not 0 <= index < len(self):
                raise ValueError(
                    f"freeze: no block {block!r}{nearest(str(block), self.names)}; there are {', '.join(self.names)}"
                )
            self.frozen |= {index}
            self.blocks[index].requires_grad_(False)
        if len(self.frozen) == len(self):
            raise ValueError("freeze: all blocks are frozen, so there is nothing to train; leave one out")
        self.train(self.training)

    def train(self, mode: bool = True) -> LocalNetwork:
        """Set training or evaluation mode; frozen blocks stay in evaluation mode."""
        super().train(mode)
        for index in self.frozen:
            self.blocks[index].train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks with one graph, shape (N, ...) -> (N, Z)."""
        for block in self.blocks:
            x = block(x)
        return x

    def run_layers(self, x: Tensor, context: Callable[[int], AbstractContextManager[None]] = no_context) -> Tensor:
        """Run all blocks layer by layer, with one graph and each in its context: what backprop trains."""
        for index, block in enumerate(self.blocks):
            with context(index):
                x = block(x)
        return x

    def iter_blocks(
        self,
        x: Tensor,
        *,
        blocks: range | None = None,
        input_grad: bool = False,
        boundary: Callable[[Tensor], Tensor] | None = None,
        context: Callable[[int], AbstractContextManager[None]] = no_context,
        at_activation: Container[int] = (),
    ) -> Iterator[BlockPass]:
        """Run block after block, each on a detached input, and hand out (index, input, h, output).

        The next block runs only when the caller asks for it, so the caller can finish a block's backward pass before
        another graph exists.

        Args:
            x: Input of the first of `blocks`.
            blocks: Which blocks to run; default all.
            input_grad: Make each block's input a leaf that collects a gradient.
            boundary: Applied to what crosses a border, for example a normalisation.
            context: Entered around each block's forward pass alone, never around a yield.
            at_activation: Blocks whose h is their activation: the output before closing pooling and dropout.
        """
        h = x.detach()
        for index in range(len(self)) if blocks is None else blocks:
            block_input = h.requires_grad_() if input_grad and h.is_floating_point() else h
            with context(index):
                if index in at_activation:
                    body, tail = body_and_tail(self.blocks[index])
                    scored = run_fused(body, block_input)
                    with torch.no_grad():  # the tail has no parameters: nothing is learned through it
                        h = tail(scored.detach())
                else:
                    scored = run_fused(self.blocks[index], block_input)
                    h = scored.detach()
            yield BlockPass(index, block_input, scored, h)
            del scored  # its graph must be gone before the next block runs
            if boundary is not None:
                h = boundary(h)

    def run_window(
        self,
        x: Tensor,
        blocks: range,
        *,
        context: Callable[[int], AbstractContextManager[None]] = no_context,
    ) -> list[Tensor]:
        """Run a stretch of blocks on a detached input and return their outputs, all with one graph.

        Args:
            x: Input of the first of `blocks`.
            blocks: Which blocks to run; gradients flow between them, and no further.
            context: Entered around each block's forward pass.
        """
        h, outputs = x.detach(), []
        for index in blocks:
            with context(index):
                h = run_fused(self.blocks[index], h)
            outputs.append(h)
        return outputs

    def specs(self, example: Tensor, num_classes: int, *, fewest: int = 2) -> tuple[BlockSpec, ...]:
        """Describe every block by running `example` through the network once, in evaluation mode, without a graph.

        Args:
            example: A batch of inputs, shape (N, ...); one sample is enough.
            num_classes: Z, the number of classes, or of real-valued targets.
            fewest: Smallest Z that makes sense: 2 classes, or 1 real-valued target.

        Raises:
            ValueError: The network cannot run on the example, or its last block does not give `num_classes` logits.
        """
        if num_classes < fewest:
            needed = "2 classes to tell apart" if fewest == 2 else "1 target"
            raise ValueError(f"num_classes: need at least {needed}, got {num_classes}")
        if not isinstance(example, Tensor):
            raise ValueError(f"example: need a batch of inputs as a tensor, got a {type(example).__name__}")
        shapes: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
        channels_last: set[int] = set()
        try:
            with torch.no_grad(), in_mode(self, training=False), warnings.catch_warnings(), ChannelWatch() as watch:
                warnings.simplefilter("ignore")  # what PyTorch has to say of a layer it says in training
                for index, x, h, output in self.iter_blocks(example, at_activation=range(len(self))):
                    shapes.append((tuple(x.shape[1:]), tuple(h.shape[1:]), tuple(output.shape[1:])))
                    if watch.has_channels_last(h):
                        channels_last.add(index)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
            raise ValueError(
                f"example: block {self.names[len(shapes)]!r} cannot run when the network is given {example.dtype} of "
                f"shape {tuple(example.shape)}: {error}"
            ) from error
        specs = tuple(
            self._spec(index, *found, num_classes, index in channels_last) for index, found in enumerate(shapes)
        )
        if specs[-1].shape != (num_classes,):
            raise ValueError(
                f"num_classes: the last block must give {num_classes} logits a sample, "
                f"got an output of shape {specs[-1].shape}"
            )
        return specs

    def _spec(
        self,
        index: int,
        input_shape: tuple[int, ...],
        activation_shape: tuple[int, ...],
        shape: tuple[int, ...],
        num_classes: int,
        channels_last: bool,
    ) -> BlockSpec:
        chunks = int(getattr(self.blocks[index], "feature_chunks", 1)) if len(shape) == 1 else 1
        if shape and shape[0] % chunks:
            raise ValueError(
                f"feature_chunks: block {self.names[index]!r} has width {shape[0]}, not a multiple of {chunks}"
            )
        return BlockSpec(
            index,
            len(self),
            self.names[index],
            input_shape,
            shape,
            channel_axis(self.blocks[index], shape, self.names[index], seen_last=channels_last),
            chunks,
            num_classes,
            activation_shape,
            channel_axis(self.blocks[index], activation_shape, self.names[index], seen_last=channels_last),
        )


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Run `module` in training or evaluation mode inside; each of its modules is back in its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Run `module` inside as it is, but let no running statistics of its batch normalisations move."""
    moving = [
        part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats and part.training
    ]
    for part in moving:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in moving:
            part.track_running_stats = True


def body_and_tail(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cut a block before its closing pooling, dropout and flattening: block(x) = tail(body(x)).

    The body gives the block's activation, which some methods score or send errors to; the tail has no parameters.
    Only an `nn.Sequential` can be cut; the tail of any other module is the identity.
    """
    if not isinstance(block, nn.Sequential) or type(block).forward is not nn.Sequential.forward:
        return block, nn.Identity()
    start = len(block)
    while start > 1 and isinstance(block[start - 1], _TAIL):
        start -= 1
    modules = list(block)  # a slice of a subclass would be built by its own constructor
    return nn.Sequential(*modules[:start]), nn.Sequential(*modules[start:])
