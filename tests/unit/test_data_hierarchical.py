"""The generated hierarchical digits: deterministic, of the right form, and with labels that the digits tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from localprop import data
from localprop.data import DataError, ImageSet
from localprop.data.hierarchical import generate, latent_digits, productions
from localprop.data.sources import Splits
from tests.unit.test_data_sources import gray_images, real_root, write_mnist_layout

SHADES = torch.arange(10, dtype=torch.uint8) * 20


def marked(count: int, shift: int) -> ImageSet:
    """Images of one shade a digit: 20 d + shift."""
    labels = torch.arange(count) % 10
    return ImageSet((SHADES[labels] + shift).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).clone(), labels)


DIGITS = Splits(marked(40, 1), marked(20, 2), tuple("0123456789"))


def classes_of(digits: Tensor) -> list[int]:
    """Read the classes off the digits of images, by search in the tables."""
    grids, patches = productions()
    symbol_of = {tuple(patch.flatten().tolist()): symbol for symbol in range(10) for patch in patches[symbol]}
    class_of = {tuple(grid.flatten().tolist()): label for label in range(10) for grid in grids[label]}
    assert len(symbol_of) == len(class_of) == 30
    found = []
    for image in digits:
        corners = [image[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
        found.append(class_of[tuple(symbol_of[tuple(patch.flatten().tolist())] for patch in corners)])
    return found


def test_the_latent_digits_tell_the_class():
    labels = torch.arange(200) % 10
    digits = latent_digits(labels, torch.Generator().manual_seed(3))
    assert digits.shape == (200, 4, 4)
    assert classes_of(digits) == labels.tolist()
    ways = {tuple(image.flatten().tolist()) for image in digits[labels == 0]}
    assert len(ways) > 15


def test_an_image_shows_its_latent_digits():
    made = generate(DIGITS, 30, 20)
    for part, shift in ((made.train, 1), (made.test, 2)):  # of its own split's images
        cells = part.images.view(-1, 4, 7, 4, 7)
        assert (cells == cells[:, :, :1, :, :1]).all()
        shades = cells[:, :, 0, :, 0].long() - shift
        assert (shades % 20 == 0).all()
        assert classes_of(shades // 20) == part.labels.tolist()
        assert torch.bincount(part.labels).tolist() == [len(part) // 10] * 10
    assert made.train.images.shape == (30, 1, 28, 28)
    assert made.test.images.shape == (20, 1, 28, 28)
    assert made.train.labels[:10].tolist() != list(range(10))


def test_digits_are_drawn_among_all_images_and_averaged():
    labels = torch.arange(20) % 10
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made = generate(Splits(ImageSet(images, labels), DIGITS.test, DIGITS.class_names), 50, 10)
    small = images.view(20, 7, 4, 7, 4).double().mean((2, 4)).round()
    cells = made.train.images.view(50, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 7, 7)
    used = [[bool(torch.equal(cell.double(), image)) for image in small].index(True) for cell in cells]
    assert len(set(used)) == 20


def test_the_same_digits_give_the_same_pixels_whatever_the_random_state():
    first = generate(DIGITS, 30, 20)
    torch.manual_seed(7)
    again = generate(DIGITS, 30, 20)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.labels, again.test.labels)
    assert torch.equal(productions()[1], productions()[1])
    assert productions()[0][0, 0].tolist() == [[8, 7], [9, 2]]


def test_a_digit_without_images_is_told():
    few = ImageSet(DIGITS.train.images[:7], DIGITS.train.labels[:7])
    with pytest.raises(DataError, match="the train images of mnist have none of 7; complete them"):
        generate(Splits(few, DIGITS.test, DIGITS.class_names), 10, 10)


def test_it_is_loaded_by_name_from_where_mnist_is(tmp_path: Path):
    write_mnist_layout(tmp_path / "MNIST" / "raw", gray_images(10), range(10))
    loaded, entry = data.load("hierarchical-digits", root=str(tmp_path)), data.CATALOGUE["hierarchical-digits"]
    assert (len(loaded.train), len(loaded.test)) == (entry.num_train, entry.num_test)
    assert loaded.image_shape == entry.image_shape
    assert loaded.class_names == entry.class_names


def test_of_the_real_digits_it_is_always_the_same():
    loaded = data.load("hierarchical-digits", root=real_root("mnist"))
    assert loaded.train.labels[:10].tolist() == [2, 7, 7, 9, 6, 2, 7, 7, 3, 0]
    assert int(loaded.train.images.long().sum()) == 530_796_036
