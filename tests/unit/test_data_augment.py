"""Batched augmentation against the naive twin, and its distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localprop.data import Augmentation, augment
from localprop.data.augment import crop_and_flip, cut_out
from tests.reference import augment as naive


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_crop_and_flip_is_the_naive_twin(
    count: int, channels: int, height: int, width: int, padding: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, channels, height, width), generator=generator).to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flipped = torch.randint(0, 2, (count,), generator=generator).bool()
    result = crop_and_flip(images, offsets[:, 0], offsets[:, 1], flipped, padding=padding)
    corners = [(top, left) for top, left in offsets.tolist()]
    expected = naive.crop_and_flip(images, corners, flipped.tolist(), padding)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_augment_draws_every_crop_and_flip_equally_often(flip: bool) -> None:
    padding, count = 1, 9000
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    result = augment(image.expand(count, -1, -1, -1), Augmentation(padding, flip), seed=5)
    cells = [(top, left, mirror) for top in range(3) for left in range(3) for mirror in range(1 + flip)]
    seen = 0
    for top, left, mirror in cells:
        expected = naive.crop_and_flip(image, [(top, left)], [bool(mirror)], padding)
        frequency = int((result == expected).flatten(1).all(1).sum())
        seen += frequency
        mean = count / len(cells)
        assert abs(frequency - mean) < 5 * mean**0.5
    assert seen == count


@pytest.mark.parametrize("augmentation", [Augmentation(2, True), Augmentation(2), Augmentation(flip=True)])
def test_augment_is_a_function_of_the_seed(augmentation: Augmentation) -> None:
    images = torch.randint(0, 256, (32, 3, 8, 8)).to(torch.uint8)
    before = images.clone()
    state = torch.get_rng_state()
    first = augment(images, augmentation, seed=2**63 - 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(augment(images, augmentation, seed=2**63 - 1), first)
    assert not torch.equal(augment(images, augmentation, seed=7), first)
    assert torch.equal(images, before)
    assert torch.equal(augment(images.float(), augmentation, seed=2**63 - 1), first.float())


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 1, 5, 5)).to(torch.uint8)
    assert torch.equal(augment(images, Augmentation(), seed=0), images)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding must be 0 or more pixels, got -1"):
        Augmentation(crop_padding=-1)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), size=st.integers(0, 9), seed=st.integers(0, 1000))
def test_cutout_is_one_square_that_may_reach_over_the_border(height: int, width: int, size: int, seed: int) -> None:
    images = cut_out(torch.ones(5, 2, height, width), size, seed)
    for image in images:
        hole = image == 0
        assert torch.equal(hole[0], hole[1])
        corners = {
            (top, left)
            for top in range(-(size // 2), height - size // 2)
            for left in range(-(size // 2), width - size // 2)
            if torch.equal(hole[0], naive.square(height, width, top, left, size))
        }
        assert corners or size == 0
    assert torch.equal(images, cut_out(torch.ones(5, 2, height, width), size, seed))


def test_every_pixel_is_the_centre_of_the_hole_equally_often() -> None:
    count = 9000
    images = cut_out(torch.ones(count, 1, 3, 3), 1, seed=3)
    assert torch.equal((images == 0).flatten(1).sum(1), torch.ones(count, dtype=torch.int64))
    assert ((images == 0).sum(0) - count / 9).abs().max() < 5 * (count / 9) ** 0.5
