"""Small networks that predict what other blocks will send: gradients, inputs, targets."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.pooling import native_layout, standard_layout
from localprop.types import BlockSpec

Shape = tuple[int, ...]


class Synthesiser(nn.Module):
    """Predict the gradient of the loss with respect to a block's output: h [, y] -> the shape of h.

    Maps: conv, BN, ReLU, conv, BN, ReLU, conv, which keep the size. Flat outputs, tokens and sequences: linear, ReLU,
    linear, over the channels. The last layer starts at zero, so that the first predictions are zero. With labels, a
    linear map of the one-hot label is added to the first hidden features, before their normalisation.

    Batch normalisation keeps no running statistics: a synthesiser is used in training alone.

    Args:
        spec: The block.
        hidden: Hidden channels; default as many as the block has.
        kernel: Odd size of the convolutions.
        conditioned: Whether it sees the label.

    Shape: h (N, C, H, W), (N, K, C) or (N, D); y (N,).

    Cost: with M hidden channels, about k^2 (2 C M + M^2) parameters for maps, 2 C M for others.

    Raises:
        ValueError: A setting out of its range, or an output of another shape.
    """

    def __init__(self, spec: BlockSpec, *, hidden: int | None, kernel: int, conditioned: bool) -> None:
        super().__init__()
        check_layers(hidden, kernel)
        check_shape(spec)
        self.num_classes, self.channel_axis = spec.num_classes, spec.channel_axis
        channels = spec.shape[spec.channel_axis]
        width = hidden or channels
        self.first: nn.Module
        if len(spec.shape) == 3:
            self.first = _conv(channels, width, kernel, bias=False)
            last: nn.Module = _conv(width, channels, kernel)
            middle = [_norm(width), nn.ReLU(), _conv(width, width, kernel, bias=False), _norm(width), nn.ReLU()]
        else:
            self.first, last = nn.Linear(channels, width), nn.Linear(width, channels)
            middle = [nn.ReLU()]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.rest = nn.Sequential(*middle, last)
        self.label = nn.Linear(spec.num_classes, width, bias=False) if conditioned else None
        self._label_shape = (-1, width, 1, 1) if len(spec.shape) == 3 else (-1, *[1] * (len(spec.shape) - 1), width)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each sample's own loss."""
        z = self.first(standard_layout(h, self.channel_axis))
        if self.label is not None:
            one_hot = F.one_hot(y, self.num_classes).to(self.label.weight.dtype)
            z = z + self.label(one_hot).view(self._label_shape)
        return native_layout(self.rest(z), self.channel_axis)


def input_predictor(spec: BlockSpec, image_shape: Shape, *, hidden: int | None, kernel: int) -> nn.Sequential:
    """Build what predicts a block's input from the raw image.

    Maps: conv, BN, ReLU, average pooling to the input's size, conv, BN, ReLU, conv. All else: linear, layer norm,
    ReLU, linear.

    Args:
        spec: The block.
        image_shape: One image.
        hidden: Hidden channels; default as many as the input has.
        kernel: Odd size of the convolutions.
    """
    check_layers(hidden, kernel)
    shape = spec.input_shape
    if len(shape) == len(image_shape) == 3:
        width = hidden or shape[0]
        return nn.Sequential(
            _conv(image_shape[0], width, kernel, bias=False),
            _norm(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(shape[1:]),
            _conv(width, width, kernel, bias=False),
            _norm(width),
            nn.ReLU(),
            _conv(width, shape[0], kernel),
        )
    size = math.prod(shape)
    width = hidden or size
    # Without a normalisation all hidden units can die in the first steps: images are wide and their targets far.
    layers = [nn.Linear(math.prod(image_shape), width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, size)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, shape))


def feedback_net(source: Shape, shape: Shape, *, hidden: int, bias: bool = True) -> nn.Sequential:
    """Build what carries targets down: one sample of shape `source` -> `shape`.

    Between maps: nearest-neighbour resizing to the lower size, then a 3x3 convolution. All else: a linear layer on all
    units. With `hidden`, a ReLU and a second such layer follow.

    Args:
        source: Shape above.
        shape: Shape below.
        hidden: Channels or units of a hidden layer; 0 for none.
        bias: Whether the layers have biases.

    Raises:
        ValueError: `hidden` is negative.
    """
    if hidden < 0:
        raise ValueError(f"hidden: must be at least 0 (no hidden layer), got {hidden}")
    maps = len(source) == len(shape) == 3
    widths = [source[0], shape[0]] if maps else [math.prod(source), math.prod(shape)]
    if hidden:
        widths.insert(1, hidden)
    layers = [_conv(a, b, 3, bias=bias) if maps else nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    modules: list[nn.Module] = [layers[0], nn.ReLU(), layers[1]] if hidden else [*layers]
    if maps:
        return nn.Sequential(*([] if source[1:] == shape[1:] else [nn.Upsample(size=shape[1:])]), *modules)
    before = [nn.Flatten()] if len(source) > 1 else []
    return nn.Sequential(*before, *modules, *([nn.Unflatten(1, shape)] if len(shape) > 1 else []))


def check_layers(hidden: int | None, kernel: int) -> None:
    """Refuse sizes that no predictor can have.

    Raises:
        ValueError: A setting out of its range.
    """
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden: must be at least 1, got {hidden}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel: must be odd and positive, to keep the size of maps, got {kernel}")


def check_shape(spec: BlockSpec) -> None:
    """Refuse outputs that no predictor is made for.

    Raises:
        ValueError: More than three axes.
    """
    if not 1 <= len(spec.shape) <= 3:
        raise ValueError(
            f"net: block {spec.name!r} gives outputs of shape {spec.shape}; this method needs flat ones (D,), tokens "
            "(K, C) or maps (C, H, W); cut the network elsewhere"
        )


def _conv(in_channels: int, out_channels: int, kernel: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)
