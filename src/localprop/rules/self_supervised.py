"""Greedy training on several views or patches of each image, where blocks learn without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.functional.views import grid_patches, random_view
from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.objectives.self_supervised import average_logits
from localprop.rules.backprop import NETWORK
from localprop.rules.base import check_tensor, unique
from localprop.rules.greedy import Greedy
from localprop.seed import derive
from localprop.types import BlockStep, Key, LocalBatch


class GreedyViews(Greedy):
    """Train each block by its own objective on two views of each image.

    The blocks run on 2N rows: all first views, then all second ones. Evaluation runs on the images as they are.

    Args:
        net: The network.
        objectives: One a block; they score 2N rows and as many labels.
        smallest_crop: Smallest part of the image's area that a view shows, in (0, 1].
        jitter: Strength of the random changes of brightness, contrast and saturation, 0 or more.

    Raises:
        ValueError: A setting out of its range, or a network that does not take images.
    """

    def __init__(
        self, net: LocalNetwork, objectives: Sequence[Objective], *, smallest_crop: float = 0.25, jitter: float = 0.4
    ) -> None:
        super().__init__(net, objectives)
        check_takes_images(self.specs[0].input_shape)
        if not 0 < smallest_crop <= 1:
            raise ValueError(f"smallest_crop: must lie in (0, 1], got {smallest_crop}")
        if not 0 <= jitter < float("inf"):
            raise ValueError(f"jitter: must be 0 or more, got {jitter}")
        self.smallest_crop, self.jitter = smallest_crop, jitter

    def steps(
        self, x: Tensor | tuple[Tensor, Tensor], y: Tensor, *, blocks: range | None = None, scale: float = 1.0
    ) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`.

        Args:
            x: Images, whose two views are drawn here; or two views of yours; with `blocks` that do not begin at the
                first one, the 2N rows that the block before gave.
            y: Class indices. Shape (N,).
            blocks: A stretch of the network.
            scale: Factor of every gradient.

        Raises:
            ValueError: The batch does not fit.
        """
        if blocks is None or blocks.start == 0:
            first, second = x if isinstance(x, tuple) else (x, x)
            for view in (first, second):
                self.check_batch(view, y, range(len(self.net)))
            rows = torch.cat([first, second]) if isinstance(x, tuple) else self._two_views(x)
        else:
            assert isinstance(x, Tensor)
            rows = x
        labels, groups = torch.cat([y, y]), self.parameter_groups()
        trained = self._start(rows, labels, blocks)
        with closing(self._stream(rows, labels, trained, scale, trained=groups, groups=groups)) as steps:
            for step in steps:
                yield replace(step, logits=None if step.logits is None else step.logits[: len(y)])

    def _two_views(self, x: Tensor) -> Tensor:
        images = self.image(x)
        generator = torch.Generator().manual_seed(derive(self.seed, "views", self._step, self._passes))
        views = [random_view(images, generator, smallest_crop=self.smallest_crop, jitter=self.jitter) for _ in range(2)]
        return self.from_image(torch.cat(views)).contiguous(memory_format=layout_of(x))


class PatchGrid(NamedTuple):
    """How images are cut into overlapping patches.

    Attributes:
        image_shape: (C, H, W) of the images.
        size: Pixels a side of a patch.
        stride: Pixels between two patches.
        rows: R.
        columns: S.
    """

    image_shape: tuple[int, ...]
    size: int
    stride: int
    rows: int
    columns: int


class GreedyPatches(Greedy):
    """Train each block by its own objective on overlapping patches of each image.

    Every block runs on the N R S patches of a grid of R rows and S columns; a prediction is the mean over an image's
    patches, in training and in evaluation alike.

    Args:
        net: The network; its blocks must take patches as well as images.
        objectives: One a block, built for single patches.
        grid: How images are cut.
    """

    is_chain = False

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective], grid: PatchGrid) -> None:
        super().__init__(net, objectives)
        self.grid = grid
        self.patches_per_image = grid.rows * grid.columns

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block; see `Rule.steps`.

        A stretch that does not begin at the first block takes the N R S rows that the block before gave.
        """
        groups = self.parameter_groups()
        patches, labels = self._patches_of(x, y, blocks)
        trained = self._start(patches, labels, blocks)
        with closing(self._stream(patches, labels, trained, scale, trained=groups, groups=groups)) as steps:
            for step in steps:
                yield replace(step, logits=self._averaged(step.logits))

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return the mean logits over an image's patches for every block; see `Rule.exits`."""
        logits = []
        for index in range(len(self.net)):
            h, x = self.run_block(index, x)
            logits.append(self.exit_logits(index, h))
        return logits

    def run_block(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one block on an image's patches, (N, ...) -> (N, R S, ...); see `Rule.run_block`."""
        if block == 0:
            self._check_images(x)
        h, output = super().run_block(block, self._cut(x) if block == 0 else x.flatten(0, 1))
        grid = (h.shape[0] // self.patches_per_image, self.patches_per_image)
        return h.view(*grid, *h.shape[1:]), output.view(*grid, *output.shape[1:])

    def exit_logits(self, block: int, h: Tensor) -> Tensor | None:
        """Return the mean of the objective's logits over an image's patches; see `Rule.exit_logits`."""
        return self._averaged(super().exit_logits(block, h.flatten(0, 1)))

    def _patches_of(self, x: Tensor, y: Tensor, blocks: range | None) -> tuple[Tensor, Tensor]:
        if blocks is not None and blocks.start > 0:
            return x, y.repeat_interleave(self.patches_per_image)
        self._check_images(x)
        patches = self._cut(x)
        self.check_batch(patches[:: self.patches_per_image], y, range(len(self.net)))
        return patches, y.repeat_interleave(self.patches_per_image)

    def _check_images(self, x: Tensor) -> None:
        check_tensor(x)
        expected = self.grid.image_shape
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: the network takes samples of shape {expected}, got a batch of shape {tuple(x.shape)}")

    def _cut(self, x: Tensor) -> Tensor:
        return grid_patches(x, self.grid.size, self.grid.stride).contiguous(memory_format=layout_of(x))

    def _averaged(self, logits: Tensor | None) -> Tensor | None:
        return None if logits is None else average_logits(logits, self.patches_per_image)


class EndToEndPatches(GreedyPatches):
    """Train all hidden blocks together by the last hidden block's objective on patches, with one graph through them.

    The bound of `GreedyPatches`: the same loss, but no cut. The last block and the probes of the hidden blocks read
    detached features. One parameter group, (None, "network").
    """

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group: all parameters."""
        return {NETWORK: unique(list(self.parameters()))}

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (None, "network") once; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for.
        """
        self.refuse_stretch(blocks, "trained end to end, the network cannot be cut", "use infomax")
        patches, labels = self._patches_of(x, y, None)
        self._passes += 1
        with self.cleared_if_abandoned():
            loss, logits, logs = self._loss(patches, labels)
            torch.autograd.backward(loss if scale == 1.0 else loss * scale)
            loss, logits = loss.detach(), logits.detach()
            yield BlockStep(NETWORK, loss, self._averaged(logits), logits, logs)

    def _loss(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        h, total = patches, torch.zeros((), device=patches.device)
        logs: dict[str, Tensor] = {}
        for index, block in enumerate(self.net.blocks):
            last = index == len(self.net) - 1
            block_input = h.detach() if last else h
            with self.context(index):
                h = block(block_input)
            with self.context(index, "objective"):
                local = self._objective(index)(h, LocalBatch(labels, block_input.detach()))
            total = total + local.loss
            logs |= local.logs
        assert local.logits is not None
        return total, local.logits, logs


def check_takes_images(shape: tuple[int, ...]) -> None:
    """Refuse a network whose input is no image.

    Raises:
        ValueError: The shape of a sample is not (C, H, W).
    """
    if len(shape) != 3:
        raise ValueError(f"network: must take images (C, H, W), whose views are compared; it takes samples {shape}")


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the memory layout of a batch of images."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
