"""Two ways to put a label into an input, whose shape stays what it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.rules.base import Rule


class LabelOverlay(nn.Module):
    """Write class weights over the first Z pixels, in every channel: weight 1 is a white pixel, 0 a black one.

    Args:
        input_shape: One sample: (C, H, W), (C, L), or (D,), whose entries are its pixels.
        num_classes: Z.

    Raises:
        ValueError: A sample has fewer pixels than there are classes.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        pixels = input_shape[1:] or input_shape
        if math.prod(pixels) < num_classes:
            raise ValueError(
                f"label: {num_classes} classes need as many pixels, the inputs have {math.prod(pixels)}; "
                "use label 'pattern'"
            )
        self.places = torch.unravel_index(torch.arange(num_classes), pixels)

    def forward(self, x: Tensor, weights: Tensor, rule: Rule) -> Tensor:
        """Return a labelled copy of `x`, for weights (N, Z) or (Z,)."""
        x = x.clone()
        pixels = x if x.dim() > 2 else x.unsqueeze(1)
        colours = rule.from_image(weights.expand(x.shape[0], -1).unsqueeze(1).expand(-1, pixels.shape[1], -1))
        places: tuple[slice | Tensor, ...] = (slice(None), slice(None), *self.places)
        pixels[places] = colours
        return x


class ClassPattern(nn.Module):
    """Add a fixed random pattern a class: x + strength sum_z weight_z P_z, with P_z of N(0, 1) entries.

    Args:
        input_shape: One sample.
        num_classes: Z.
        strength: Factor of the patterns, in units of the network's inputs; positive.

    Raises:
        ValueError: The strength is not positive.
    """

    patterns: Tensor

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, strength: float = 1.0) -> None:
        super().__init__()
        check_positive("strength", strength)
        self.strength = strength
        self.register_buffer("patterns", torch.randn(num_classes, *input_shape))

    def forward(self, x: Tensor, weights: Tensor, rule: Rule) -> Tensor:
        """Return a labelled copy of `x`, for weights (N, Z) or (Z,)."""
        patterns = weights @ self.patterns.flatten(1).to(x.dtype)
        return x + self.strength * patterns.reshape(-1, *x.shape[1:])
