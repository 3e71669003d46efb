"""Batches as a pure function of seed and step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localprop.data import Augmentation, BatchLoader, ImageSet, evaluation_batches, normalise

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def numbered(count: int, size: int = 6) -> ImageSet:
    """Make images whose label is their number."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)
    return ImageSet(pixels, torch.arange(count))


def loader(images: ImageSet, seed: int = 0, batch_size: int = 4, shuffle: bool = True) -> BatchLoader:
    return BatchLoader(
        images,
        batch_size=batch_size,
        mean=MEAN,
        std=STD,
        augmentation=Augmentation(2, True),
        seed=seed,
        device="cpu",
        shuffle=shuffle,
    )


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), epoch=st.integers(0, 5))
def test_every_epoch_visits_every_image_once(count: int, batch_size: int, epoch: int) -> None:
    batches = loader(numbered(count), batch_size=batch_size)
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    labels = [batches.batch(step)[1] for step in steps]
    assert [len(part) for part in labels[:-1]] == [batch_size] * (len(labels) - 1)
    assert sorted(torch.cat(labels).tolist()) == list(range(count))


def test_any_step_comes_out_bitwise_the_same_in_any_order() -> None:
    images = numbered(23)
    first, second = loader(images, seed=3), loader(images, seed=3)
    forward = [first.batch(step) for step in range(18)]
    torch.manual_seed(99)
    for step in reversed(range(18)):
        x, y = second.batch(step)
        assert torch.equal(x, forward[step][0])
        assert torch.equal(y, forward[step][1])


def test_epochs_seeds_and_steps_differ() -> None:
    images = numbered(64)
    batches = loader(images, seed=3, batch_size=64)
    orders = [batches.batch(0)[1], batches.batch(1)[1], loader(images, seed=4, batch_size=64).batch(0)[1]]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    # Unshuffled, two epochs show the same images in the same order, cropped and flipped anew.
    plain = loader(images, batch_size=64, shuffle=False)
    (x, y), (later_x, later_y) = plain.batch(0), plain.batch(1)
    assert y.tolist() == later_y.tolist() == list(range(64))
    assert not torch.equal(x, later_x)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    loader(numbered(10)).batch(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_normalised_float32() -> None:
    images = numbered(8)
    batches = BatchLoader(images, batch_size=8, mean=MEAN, std=STD, augmentation=Augmentation(), seed=0, device="cpu")
    x, y = batches.batch(0)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    expected = (images.images[y].double() / 255 - mean) / std
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalise(images.images, MEAN, STD)[y], x, rtol=0, atol=0)


def test_evaluation_gives_every_image_in_order_and_as_it_is() -> None:
    images = numbered(10)
    batches = list(evaluation_batches(images, 4, MEAN, STD, "cpu"))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert torch.cat([y for _, y in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([x for x, _ in batches]), normalise(images.images, MEAN, STD))


def test_one_image_is_a_batch() -> None:
    x, y = loader(numbered(1)).batch(5)
    assert x.shape == (1, 3, 6, 6)
    assert y.tolist() == [0]


def limited(counts: list[int], batch_size: int, classes_per_batch: int, epochs: int | None = None) -> BatchLoader:
    """Make a loader of images whose first pixel is their number, `counts[z]` of class z."""
    labels = torch.cat([torch.full((count,), z) for z, count in enumerate(counts)])
    pixels = torch.zeros(len(labels), 1, 1, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(len(labels)) // 256, torch.arange(len(labels)) % 256
    return BatchLoader(
        ImageSet(pixels, labels),
        batch_size=batch_size,
        mean=(0.0,),
        std=(1 / 255,),
        augmentation=Augmentation(),
        seed=5,
        device="cpu",
        classes_per_batch=classes_per_batch,
        limited_epochs=epochs,
    )


def numbers(x: torch.Tensor) -> list[int]:
    return (256 * x[:, 0, 0, 0] + x[:, 0, 0, 1]).round().int().tolist()


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(20, 45), min_size=4, max_size=12),
    batch_size=st.integers(1, 30),
    classes_per_batch=st.integers(3, 11),
    epoch=st.integers(0, 3),
)
def test_batches_of_few_classes_still_visit_every_image_once(
    counts: list[int], batch_size: int, classes_per_batch: int, epoch: int
) -> None:
    classes_per_batch = min(classes_per_batch, len(counts) - 1)
    batches = limited(counts, batch_size, classes_per_batch)
    seen = []
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        x, y = batches.batch(step)
        assert len(y.unique()) <= classes_per_batch
        seen += numbers(x)
    assert sorted(seen) == list(range(sum(counts)))


def test_batches_of_few_classes_mix_many_and_change_over_the_epochs() -> None:
    batches = limited([64] * 20, 32, 8)
    sets = [[tuple(batches.batch(step)[1].unique().tolist()) for step in range(e, e + 40)] for e in (0, 40)]
    assert min(len(classes) for classes in sets[0]) >= 4
    assert len(set(sets[0])) > 30
    assert sets[0] != sets[1]
    third = set().union(*sets[0][:13])
    assert len(third) == 20  # a class is not seen in one part of the epoch alone
    again = limited([64] * 20, 32, 8)
    assert torch.equal(again.batch(17)[0], batches.batch(17)[0])


def test_the_limit_on_classes_ends() -> None:
    batches = limited([40] * 10, 40, 3, epochs=1)
    assert max(len(batches.batch(step)[1].unique()) for step in range(10)) <= 3
    assert min(len(batches.batch(step)[1].unique()) for step in range(10, 20)) > 3


@pytest.mark.parametrize(
    ("counts", "classes_per_batch", "message"),
    [
        ([40] * 4, 1, "must be 2 or more and below the 4 classes of the training images, got 1"),
        ([40] * 4, 4, "below the 4 classes.*got 4; leave it out"),
        ([40, 9, 40], 2, "2 classes in 16 images need 15 training images of every class, got 9 of class 1; raise it"),
    ],
)
def test_a_limit_on_classes_that_cannot_be_kept_is_refused(counts: list[int], classes_per_batch: int, message: str):
    with pytest.raises(ValueError, match=message):
        limited(counts, 16, classes_per_batch)


def test_wrong_settings_are_refused() -> None:
    images = numbered(4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        loader(images, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(evaluation_batches(images, 0, MEAN, STD, "cpu"))
    with pytest.raises(ValueError, match="mean must be 3 finite numbers"):
        next(evaluation_batches(images, 1, (0.5,), (0.5,), "cpu"))
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        loader(images).batch(-1)
