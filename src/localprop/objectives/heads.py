"""Small trained networks between a block and its loss."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from localprop.functional.pooling import as_map, average_positions, map_shape, num_pooled_features, pool_to_budget
from localprop.functional.precision import full_precision
from localprop.types import BlockSpec

Head = Literal["linear", "mlp", "mlp-sr", "cnn"]
HIDDEN_WIDTH = 128
"""Width between the linear layers of a `ConvolutionalHead`."""


class AsMap(nn.Module):
    """Lay any block output out as maps; see `localprop.functional.pooling.as_map`."""

    def forward(self, h: Tensor) -> Tensor:
        """Return maps, shape (N, C, H, W)."""
        return as_map(h)


class MoveAxis(nn.Module):
    """Move an axis of a block's output; the others keep their order.

    Args:
        source: Where it stands, the batch axis being 0.
        destination: Where it goes.
    """

    def __init__(self, source: int, destination: int) -> None:
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, h: Tensor) -> Tensor:
        """Return a view."""
        return h.movedim(self.source, self.destination)


def standard(spec: BlockSpec) -> list[nn.Module]:
    """Return what views a block's output as heads read it; nothing where it is so already."""
    if spec.channel_axis == (-1 if len(spec.shape) == 2 else 0):
        return []
    return [MoveAxis(1, -1) if len(spec.shape) == 2 else MoveAxis(-1, 1)]


def native(spec: BlockSpec) -> list[nn.Module]:
    """Return what undoes `standard`."""
    return [MoveAxis(move.destination, move.source) for move in standard(spec) if isinstance(move, MoveAxis)]


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
        return features.reshape(len(patches), h.shape[0], -1).mean(0)


class PooledLinear(nn.Module):
    """Map features to a vector: average pooling to a feature budget, flattening, one linear layer.

    Args:
        shape: One sample of what is scored: (C, H, W), (K, C) or (D,).
        num_outputs: Length of the vector; at least 1.
        feature_budget: Most features that the linear layer reads; at least 1.

    Shape: h (N, *shape), result (N, num_outputs), in at least float32.

    Cost: num_outputs (P + 1) parameters, P <= max(feature_budget, C).

    Raises:
        ValueError: The budget is below 1.
    """

    def __init__(self, shape: tuple[int, ...], num_outputs: int, *, feature_budget: int) -> None:
        super().__init__()
        self.feature_budget = feature_budget
        self.linear = nn.Linear(num_pooled_features(shape, feature_budget), num_outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Map `h`."""
        features = pool_to_budget(h, self.feature_budget)
        with full_precision(h):
            output: Tensor = self.linear(features)
            return output


class ConvolutionalHead(nn.Module):
    """Map features to a vector: 3x3 convolutions, global averaging, linear layers of width 128 with ReLU between them.

    A convolution doubles the channels and halves the map while there are fewer than `widest` channels, and keeps both
    after that; batch normalisation and ReLU follow it. Tokens and flat outputs meet the linear layers alone.

    Args:
        shape: One sample of what is scored: (C, H, W), (K, C) or (D,).
        num_outputs: Length of the vector; at least 1.
        num_convolutions: Number of convolutions, 0 or more.
        num_linear: Number of linear layers, 1 or more.
        widest: Most channels that a convolution makes of fewer.

    Shape: h (N, *shape), result (N, num_outputs), in at least float32.

    Note: Published for 16, 32 and 64 channels as 16 -> 32, 32 -> 64 with stride 2 and 64 -> 64 with stride 1; `widest`
        takes the place of 64. What a second convolution does is not, here it follows the same rule.

    References: Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
        arXiv:2101.10832.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_outputs: int,
        *,
        num_convolutions: int,
        num_linear: int,
        widest: int,
    ) -> None:
        super().__init__()
        self.channel_axis = 1 if len(shape) == 3 else -1
        width = shape[0] if len(shape) == 3 else shape[-1]
        convolutions: list[nn.Module] = []
        for _ in range(num_convolutions if len(shape) == 3 else 0):
            wider = max(width, min(2 * width, widest))
            stride = 2 if wider > width else 1
            convolutions += [nn.Conv2d(width, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider)]
            convolutions.append(nn.ReLU(inplace=True))
            width = wider
        self.convolutions = nn.Sequential(*convolutions)
        linear: list[nn.Module] = []
        for _ in range(num_linear - 1):
            linear += [nn.Linear(width, HIDDEN_WIDTH), nn.ReLU(inplace=True)]
            width = HIDDEN_WIDTH
        self.linear = nn.Sequential(*linear, nn.Linear(width, num_outputs))

    def forward(self, h: Tensor) -> Tensor:
        """Map `h`."""
        features = average_positions(self.convolutions(h), self.channel_axis)
        with full_precision(h):
            output: Tensor = self.linear(features)
            return output


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


def build_deep_head(shape: tuple[int, ...], depth: int) -> nn.Sequential:
    """Build an auxiliary network of greedy layerwise training, without its classifier: pool(a_{k-1}( .. a_1(h))).

    a_i(h) = relu(w_i * h + b_i) is a 3x3 convolution that keeps size and width, and pool averages a map to 2 x 2.
    Tokens and flat outputs have linear layers in the place of convolutions; tokens are averaged over all positions,
    and flat outputs stay as they are.

    Args:
        shape: One sample of the block's output, (C, H, W), (K, C) or (D,).
        depth: k, the layers of the network, its classifier included; at least 1.

    Cost: (k - 1) (9 C^2 + C) parameters for maps.

    References: Belilovsky, Eickenberg and Oyallon, "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019,
        arXiv:1812.11446.
    """
    is_map = len(shape) == 3
    width = shape[0] if is_map else shape[-1]
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Conv2d(width, width, 3, padding=1) if is_map else nn.Linear(width, width), nn.ReLU()]
    if is_map:
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((min(2, shape[1]), min(2, shape[2]))), nn.Flatten())
    return nn.Sequential(*layers, GlobalAverage(shape))


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
