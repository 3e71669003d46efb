"""Residual networks for small images: three stages of residual blocks, each a block of the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from localprop.models.parts import check_settings, named, pooled_classifier, scaled
from localprop.network import LocalNetwork

CHANNELS = (16, 32, 64)

# Residual blocks, counted from 0, that end a module; -1 stands for the stem as a module of its own.
ENDS_32: Mapping[int, Iterable[int]] = {
    2: (6,),
    4: (2, 6, 10),
    8: (0, 2, 4, 6, 8, 10, 12),
    16: range(-1, 14),
}
ENDS_110: Mapping[int, Iterable[int]] = {
    2: (26,),
    4: (11, 25, 39),
    8: (4, 11, 18, 25, 32, 39, 46),
    16: (1, 4, 7, 10, 13, 16, 19, 22, 25, 29, 33, 37, 41, 45, 49),
}


class ResidualBlock(nn.Module):
    """Add two convolutions to what they read: y = relu(s(x) + bn(conv(relu(bn(conv(x)))))).

    s has no parameters: it keeps every `stride`-th position, and the new channels are zero.

    Args:
        in_channels: Channels of x.
        channels: Channels of y, no fewer.
        stride: Of the first convolution.

    Shape: (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).

    Cost: 9 channels (in_channels + channels) + 4 channels parameters.

    References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; option A.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels - in_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        residual: Tensor = self.residual(x)
        if self.stride > 1 or self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(residual.add_(x), inplace=True)


def _resnet(name: str, depth: int, ends: Mapping[int, Iterable[int]], cost: str) -> Callable[..., LocalNetwork]:
    per_stage = (depth - 2) // 6

    def build(
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        modules: int | None = None,
        width: float = 1.0,
        dropout: float = 0.0,
    ) -> LocalNetwork:
        """Build ResNet-{depth}: a 3x3 convolution, {blocks} residual blocks of 16 to 64 channels, a linear classifier.

        Args:
            image_shape: (C, H, W), of any size.
            num_classes: Z.
            modules: How many gradient-isolated modules residual blocks are joined into, at the published places: 2, 4,
                8 or 16; the last one holds the classifier. Default: one residual block a module, the stem in the
                first, and the classifier by itself.
            width: Factor of all layer widths.
            dropout: Probability of a channel at the end of each residual block.

        Returns:
            {blocks} residual blocks and the classifier as {total} blocks, or `modules` blocks.

        Cost: {cost}

        Raises:
            ValueError: A setting out of its range.

        References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; split into
            modules by Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
            ICLR 2021, arXiv:2101.10832.
        """
        check_settings(image_shape, num_classes, width=width, dropout=dropout)
        if modules is not None and modules not in ends:
            raise ValueError(
                f"modules: must be one of {list(ends)}, or None for a residual block a module, got {modules}"
            )
        layers = _layers(image_shape[0], num_classes, per_stage, width, dropout)
        # The stem is layer 0, so that residual block i is layer i + 1.
        last = len(layers) - 1
        cuts = range(2, last + 1) if modules is None else [end + 2 for end in ends[modules]]
        edges = [0, *cuts, last + 1]
        blocks = [nn.Sequential(*layers[a:b]) if b - a > 1 else layers[a] for a, b in itertools.pairwise(edges)]
        if modules is None:
            return LocalNetwork(blocks, [*(f"block{i}" for i in range(1, last)), "classifier"], name)
        return LocalNetwork(blocks, [f"module{i + 1}" for i in range(modules)], name)

    return named(build, name, depth=depth, blocks=3 * per_stage, total=3 * per_stage + 1, cost=cost)


def _layers(in_channels: int, num_classes: int, per_stage: int, width: float, dropout: float) -> list[nn.Module]:
    """Build the stem, the residual blocks and the classifier."""
    channels = scaled(CHANNELS[0], width)
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    layers: list[nn.Module] = [nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))]
    for stage, base in enumerate(CHANNELS):
        for index in range(per_stage):
            stride = 2 if stage and not index else 1
            block = ResidualBlock(channels, scaled(base, width), stride)
            channels = scaled(base, width)
            layers.append(nn.Sequential(block, nn.Dropout2d(dropout)) if dropout else block)
    layers.append(pooled_classifier(channels, num_classes))
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layers


resnet32 = _resnet("resnet32", 32, ENDS_32, "464,154 parameters on 3x32x32 and 10 classes.")
resnet110 = _resnet("resnet110", 110, ENDS_110, "1,727,962 parameters on 3x32x32 and 10 classes.")
