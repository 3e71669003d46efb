"""Digits on backgrounds that know nothing of them: a colour, or a texture, drawn independently of the label."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from localprop.data.sources import Splits
from localprop.data.store import DataError, ImageSet
from localprop.seed import derive

COLOURS = torch.tensor(
    [
        [220, 50, 47],
        [38, 139, 60],
        [38, 90, 210],
        [200, 190, 30],
        [150, 50, 200],
        [30, 170, 190],
        [235, 130, 30],
        [120, 75, 40],
        [235, 120, 180],
        [110, 110, 110],
    ],
    dtype=torch.uint8,
)
"""Red, green and blue of the ten backgrounds of `coloured-digits`."""
_ORIENTATIONS, _CYCLES = 5, (2.5, 6.0)
NUM_TEXTURES = _ORIENTATIONS * len(_CYCLES)
_CONTRAST = 0.6

_Draw = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Makes images in [0, 1] and what was drawn for each of gray ones in [0, 1]."""


def coloured(digits: Splits, num_train: int, num_test: int) -> Splits:
    """Lay digits on a background of one of ten colours: x = g + (1 - g) colour, g the digit's pixels in [0, 1].

    The colour is the attribute "colour" of an image, and drawn uniformly, whatever its label.

    Args:
        digits: MNIST: gray images, light digits on black.
        num_train: Training images, the first of a random order of those of `digits`.
        num_test: Test images, likewise.

    Shape: images (num_train, 3, H, W) and (num_test, 3, H, W). The same arguments give the same pixels.

    Raises:
        DataError: There are fewer digits.

    References: Bahng et al., "Learning De-biased Representations with Biased Representations", ICML 2020,
        arXiv:1910.02806, whose colours are independent of the digits at a correlation of 0.1.
    """

    def draw(gray: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        colours = torch.randint(len(COLOURS), (len(gray),), generator=generator)
        return gray + (1 - gray) * COLOURS[colours][:, :, None, None] / 255, colours

    parts = [_drawn(part, name, count, "colour", draw) for name, part, count in _parts(digits, num_train, num_test)]
    return Splits(parts[0], parts[1], digits.class_names)


def textured(digits: Splits, num_train: int, num_test: int) -> Splits:
    """Lay digits on one of ten gratings: x = max(g, 0.6 (1 + sin(2 pi f (u cos a + v sin a) + phi)) / 2).

    Texture r has the angle a = pi (r mod 5) / 5 and f = 2.5 cycles an image (r < 5) or 6. The phase phi is drawn
    uniformly for every image, so that no background of a test image was seen in training. r is the attribute "texture"
    of an image, and drawn uniformly, whatever its label.

    Args:
        digits: As for `coloured`.
        num_train: As for `coloured`.
        num_test: As for `coloured`.

    Shape: images (num_train, 1, H, W) and (num_test, 1, H, W). The same arguments give the same pixels.

    Raises:
        DataError: There are fewer digits.
    """

    def draw(gray: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        textures = torch.randint(NUM_TEXTURES, (len(gray),), generator=generator)
        phases = 2 * math.pi * torch.rand(len(gray), generator=generator)
        return torch.maximum(gray, _CONTRAST * gratings(textures, phases, gray.shape[-1])[:, None]), textures

    parts = [_drawn(part, name, count, "texture", draw) for name, part, count in _parts(digits, num_train, num_test)]
    return Splits(parts[0], parts[1], digits.class_names)


def gratings(textures: Tensor, phases: Tensor, side: int) -> Tensor:
    """Draw gratings in [0, 1]; see `textured`.

    Args:
        textures: 0 .. 9. Shape (N,), int64.
        phases: In radians. Shape (N,).
        side: Pixels a side.

    Shape: (N, side, side).
    """
    angles = math.pi / _ORIENTATIONS * (textures % _ORIENTATIONS)
    waves = 2 * math.pi * torch.tensor(_CYCLES)[textures // _ORIENTATIONS]
    place = torch.arange(side) / side
    along = angles.cos()[:, None, None] * place[None, None, :] + angles.sin()[:, None, None] * place[None, :, None]
    return (1 + (waves[:, None, None] * along + phases[:, None, None]).sin()) / 2


def _parts(digits: Splits, num_train: int, num_test: int) -> list[tuple[str, ImageSet, int]]:
    return [("train", digits.train, num_train), ("test", digits.test, num_test)]


def _drawn(part: ImageSet, name: str, count: int, attribute: str, draw: _Draw) -> ImageSet:
    if len(part) < count:
        raise DataError(f"{attribute}: is made of {count} {name} images of mnist, there are {len(part)}; complete them")
    generator = torch.Generator().manual_seed(derive(0, attribute, name))
    chosen = part.subset(torch.randperm(len(part), generator=generator)[:count])
    pixels, drawn = draw(chosen.images.float() / 255, generator)
    return ImageSet((255 * pixels).round().to(torch.uint8), chosen.labels, attributes={attribute: drawn})
