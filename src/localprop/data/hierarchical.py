"""Hierarchical digits: a class is a grid of symbols, a symbol a patch of digits, a digit a small image of one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from localprop.data.sources import Splits
from localprop.data.store import DataError, ImageSet
from localprop.seed import derive

_NAME = "hierarchical-digits"
_KINDS = 10  # of classes, of symbols and of digits
_WAYS = 3  # in which a class, or a symbol, is written


def productions() -> tuple[Tensor, Tensor]:
    """Return what stands for what: the grids of symbols of each class, and the patches of digits of each symbol.

    Both are drawn once for all, without replacement from all 2x2 arrangements of ten, so that a patch tells its symbol
    and a grid its class.

    Shape: (10, 3, 2, 2) both, int64: kind, way, row, column.
    """
    tables = []
    for level in ("grids", "patches"):
        generator = torch.Generator().manual_seed(derive(0, _NAME, level))
        codes = torch.randperm(_KINDS**4, generator=generator)[: _KINDS * _WAYS]
        arrangements = torch.stack([codes // _KINDS**place % _KINDS for place in (3, 2, 1, 0)], dim=1)
        tables.append(arrangements.view(_KINDS, _WAYS, 2, 2))
    grids, patches = tables
    return grids, patches


def latent_digits(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the digits of images: for each class one of its grids, for each symbol of it one of its patches.

    Args:
        labels: Classes. Shape (N,), int64.
        generator: Draws the ways, all equally likely.

    Shape: (N, 4, 4), int64.
    """
    grids, patches = productions()
    symbols = grids[labels, torch.randint(_WAYS, labels.shape, generator=generator)]
    digits = patches[symbols, torch.randint(_WAYS, symbols.shape, generator=generator)]
    return digits.transpose(2, 3).reshape(len(labels), 4, 4)


def generate(digits: Splits, num_train: int, num_test: int) -> Splits:
    """Generate the data set from images of digits; training images from training digits, test images from test digits.

    Labels are as equally many as can be, in random order. Each of an image's 4 x 4 digits is drawn uniformly from the
    images of that digit, averaged over 4 x 4 pixels to 7 x 7.

    Args:
        digits: MNIST: images of 28 x 28 pixels, labelled 0 .. 9.
        num_train: Training images.
        num_test: Test images.

    Shape: images (num_train, 1, 28, 28) and (num_test, 1, 28, 28). The same arguments give the same pixels.

    Raises:
        DataError: A digit has no images.
    """
    parts = []
    for part, source, count in (("train", digits.train, num_train), ("test", digits.test, num_test)):
        generator = torch.Generator().manual_seed(derive(0, _NAME, part))
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % _KINDS
        parts.append(ImageSet(_drawn(latent_digits(labels, generator), source, generator, part), labels))
    return Splits(parts[0], parts[1], tuple(str(label) for label in range(_KINDS)))


def _drawn(latent: Tensor, source: ImageSet, generator: torch.Generator, part: str) -> Tensor:
    counts = torch.bincount(source.labels, minlength=_KINDS)
    if int(counts.min()) == 0:
        raise DataError(
            f"{_NAME}: is made of images of every digit, the {part} images of mnist have none of "
            f"{int(counts.argmin())}; complete them"
        )
    by_digit = source.labels.argsort(stable=True)
    first = counts.cumsum(0) - counts
    places = torch.rand(latent.shape, generator=generator, dtype=torch.float64) * counts[latent]
    chosen = by_digit[first[latent] + places.long()]
    small = avg_pool2d(source.images.float(), 4).round().to(torch.uint8)
    cells = small[chosen]  # (N, 4, 4, 1, 7, 7)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(latent), 1, 28, 28)
