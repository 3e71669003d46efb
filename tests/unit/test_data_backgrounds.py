"""Digits on backgrounds: they are as the formula says, and the background knows nothing of the digit."""

from __future__ import annotations

import math

import pytest
import torch

from localprop.analysis.retained import empirical_information
from localprop.data import DataError, ImageSet
from localprop.data.backgrounds import COLOURS, NUM_TEXTURES, coloured, gratings, textured
from localprop.data.sources import Splits

NAMES = tuple("0123456789")


def digits(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[:, :, :, :14] = 0  # the left half is background, but for a stroke
    images[:, :, :, 7] = 255
    return ImageSet(images, torch.randint(10, (count,), generator=generator))


SOURCE = Splits(digits(3000, 1), digits(400, 2), NAMES)


def test_a_colour_shows_where_the_digit_does_not():
    made = coloured(SOURCE, 2000, 300)
    for part, count in ((made.train, 2000), (made.test, 300)):
        assert part.images.shape == (count, 3, 28, 28)
        colours = part.attributes["colour"]
        left, stroke = part.images[:, :, :, :7], part.images[:, :, :, 7]
        assert torch.equal(left, COLOURS[colours][:, :, None, None].expand_as(left))
        assert (stroke == 255).all()
    assert made.class_names == NAMES


def test_a_texture_shows_where_the_digit_does_not_and_never_outshines_it():
    made = textured(SOURCE, 200, 300)
    assert made.train.images.shape == (200, 1, 28, 28)
    assert (made.train.images[:, 0, :, 7] == 255).all()
    assert int(made.train.images[:, :, :, :7].max()) <= math.ceil(0.6 * 255)
    assert made.test.images[:, 0, :, :7].float().std((1, 2)).min() > 20


@pytest.mark.parametrize("texture", range(NUM_TEXTURES))
def test_gratings_are_waves_of_their_angle_and_number(texture: int):
    side, phase = 28, 0.7
    drawn = gratings(torch.tensor([texture]), torch.tensor([phase]), side)[0]
    angle, cycles = math.pi * (texture % 5) / 5, (2.5, 6.0)[texture // 5]
    for row, column in [(0, 0), (3, 17), (27, 5)]:
        along = (column * math.cos(angle) + row * math.sin(angle)) / side
        assert float(drawn[row, column]) == pytest.approx(
            (1 + math.sin(2 * math.pi * cycles * along + phase)) / 2, abs=1e-5
        )


@pytest.mark.parametrize(("make", "name"), [(coloured, "colour"), (textured, "texture")])
def test_the_background_knows_nothing_of_the_label(make, name: str):
    made = make(SOURCE, 3000, 400)
    for part in (made.train, made.test):
        backgrounds = part.attributes[name]
        assert torch.bincount(backgrounds, minlength=10).min() > len(part) / 20
        expected = 81 / (2 * len(part))  # of independent labellings
        assert empirical_information(backgrounds, part.labels) < 2 * expected
    again = make(SOURCE, 3000, 400)
    assert torch.equal(again.train.images, made.train.images)
    assert not torch.equal(made.train.attributes[name][:400], made.test.attributes[name])


def test_too_few_digits_are_told():
    with pytest.raises(DataError, match="2000 test images of mnist, there are 400"):
        coloured(SOURCE, 1000, 2000)


def test_empirical_information_of_known_labellings():
    a = torch.arange(100) % 4
    assert empirical_information(a, a) == pytest.approx(math.log(4))
    assert empirical_information(a, a // 2) == pytest.approx(math.log(2))
    assert empirical_information(a, torch.arange(100) // 4) == pytest.approx(0, abs=1e-12)
    assert empirical_information(a, torch.zeros(100, dtype=torch.int64)) == pytest.approx(0)


def test_attributes_follow_their_images():
    images = coloured(SOURCE, 100, 50).train
    chosen = images.subset([7, 3])
    assert chosen.attributes["colour"].tolist() == [int(images.attributes["colour"][i]) for i in (7, 3)]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_random_labels_take_the_place_of_a_share_of_the_true_ones(fraction: float):
    images = SOURCE.train
    noisy = images.with_random_labels(fraction, 10, seed=0)
    assert torch.equal(noisy.attributes["true_label"], images.labels)
    changed = float((noisy.labels != images.labels).float().mean())
    assert changed == pytest.approx(0.9 * fraction, abs=0.02)  # a tenth of the draws hits the true label
    assert torch.equal(noisy.labels, images.with_random_labels(fraction, 10, seed=0).labels)
    if fraction == 1.0:
        assert empirical_information(noisy.labels, images.labels) < 2 * 81 / (2 * len(images))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_shares_out_of_range_are_refused(fraction: float):
    with pytest.raises(ValueError, match="random_labels must lie between 0 and 1"):
        SOURCE.train.with_random_labels(fraction, 10, seed=0)
