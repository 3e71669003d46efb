"""Small networks between a block's output and a classifier: `h -> features`, shape (N, ...) -> (N, P)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from localprop.functional.pooling import as_map, average_positions, map_shape

Head = Literal["linear", "mlp", "mlp-sr", "cnn"]


class AsMap(nn.Module):
    """Lay any block output out as maps; see `localprop.functional.pooling.as_map`."""

    def forward(self, h: Tensor) -> Tensor:
        """Return maps, shape (N, C, H, W)."""
        return as_map(h)


class GlobalAverage(nn.Module):
    """Average a block's output over its positions.

    Args:
        shape: One sample of the block's output.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_axis = -1 if len(shape) == 2 else 1

    def forward(self, h: Tensor) -> Tensor:
        """Return features, shape (N, C)."""
        return average_positions(h, self.channel_axis)


class PatchAverage(nn.Module):
    """Run a head on each of n x n patches of a map, and average what it gives: (1/n^2) sum_p head(h_p).

    As classifiers are linear, averaged features give averaged logits.

    Args:
        head: Name of the head.
        shape: One sample of the block's output.
        patches: n, at least 1; a side with fewer positions is cut into single ones.

    Raises:
        ValueError: Fewer than one patch, or no such head.

    Note: Patches are of one size, ceil(s / n) on a side of s; where n does not divide it, neighbours share a position.
        The patches go through the head as one batch: its batch normalisation must not tell them apart in training,
        since in evaluation it cannot.

    References: Su et al., "HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion", ECCV 2024.
    """

    def __init__(self, head: Head, shape: tuple[int, ...], patches: int) -> None:
        super().__init__()
        if patches < 1:
            raise ValueError(f"patches: must be at least 1, got {patches}")
        channels, height, width = map_shape(shape)
        self.rows, self.columns = _pieces(height, patches), _pieces(width, patches)
        size = (self.rows[0].stop, self.columns[0].stop)
        self.head = build_head(head, (channels, *size))

    def forward(self, h: Tensor) -> Tensor:
        """Return features, shape (N, P)."""
        maps = as_map(h)
        patches = [maps[:, :, rows, columns] for rows in self.rows for columns in self.columns]
        features: Tensor = self.head(torch.cat(patches))
        return features.reshape(len(patches), len(h), -1).mean(0)


def build_head(head: Head, shape: tuple[int, ...]) -> nn.Sequential:
    """Build one of the heads of decoupled greedy learning, without its classifier.

    With s x s positions and C channels:
        linear: pool to 2x2
        mlp:    pool to ceil(s/4), pool to 2x2, then 3 x [linear 4C -> 4C, batch norm, ReLU]
        mlp-sr: pool to ceil(s/4), 3 x [1x1 conv C -> C, batch norm, ReLU], pool to 2x2, then the layers of mlp
        cnn:    2 x [3x3 conv C -> C, batch norm, ReLU], pool to 2x2, batch norm.
    All pooling is averaging.

    Args:
        head: Its name.
        shape: One sample of the block's output, (C, H, W), (K, C) or (D,).

    Cost: 0, 48 C^2, 51 C^2 and 18 C^2 weights. The convolutions of cnn run at the block's resolution.

    Raises:
        ValueError: No such head.

    Note: Nothing is pooled to more positions than it has, so sides below 5 are not pooled to ceil(s/4) < 2 and a side
        of one position stays one: a flat output of width D has 4C = D. On a side of one, kernels are 1 wide.

    References: Belilovsky, Eickenberg and Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020.
    """
    if head not in get_args(Head):
        raise ValueError(f"head: must be one of {list(get_args(Head))}, got {head!r}")
    channels, height, width = map_shape(shape)
    corners = (min(2, height), min(2, width))
    coarse = nn.AdaptiveAvgPool2d((max(math.ceil(height / 4), corners[0]), max(math.ceil(width / 4), corners[1])))
    pool, flatten = nn.AdaptiveAvgPool2d(corners), nn.Flatten()
    if head == "linear":
        return nn.Sequential(AsMap(), pool, flatten)
    if head == "cnn":
        kernel = (3 if height > 1 else 1, 3 if width > 1 else 1)
        convolutions = _convolutions(channels, kernel, 2)
        return nn.Sequential(AsMap(), *convolutions, pool, nn.BatchNorm2d(channels), flatten)
    layers: list[nn.Module] = []
    size = channels * corners[0] * corners[1]
    for _ in range(3):
        layers += [nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(inplace=True)]
    between = _convolutions(channels, (1, 1), 3) if head == "mlp-sr" else []
    return nn.Sequential(AsMap(), coarse, *between, pool, flatten, *layers)


def _convolutions(channels: int, kernel: tuple[int, int], depth: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for _ in range(depth):
        padding = (kernel[0] // 2, kernel[1] // 2)
        modules.append(nn.Conv2d(channels, channels, kernel, padding=padding, bias=False))
        modules += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return modules


def _pieces(side: int, count: int) -> list[slice]:
    """Cut a side into `count` pieces of one size that cover it, the first from 0."""
    count = min(count, side)
    size = math.ceil(side / count)
    starts = [i * (side - size) // max(count - 1, 1) for i in range(count)]
    return [slice(start, start + size) for start in starts]
