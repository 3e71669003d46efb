"""Image sets and data sets: validation, subsets, resizing, stratified hold-out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from localprop.data import Augmentation, ImageData, ImageSet
from localprop.data.loader import BatchLoader, evaluation_batches
from localprop.data.store import channel_statistics


def image_set(labels: list[int], channels: int = 1, size: int = 4, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(labels), channels, size, size), generator=generator)
    return ImageSet(pixels.to(torch.uint8), torch.tensor(labels))


def image_data(train: ImageSet, test: ImageSet, class_names: tuple[str, ...] = ("a", "b")) -> ImageData:
    channels = train.images.shape[1]
    return ImageData("toy", train, test, class_names, (0.5,) * channels, (0.25,) * channels, Augmentation())


PIXELS = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.float(), LABELS, "images must be a uint8 tensor"),
        (PIXELS[:, 0], LABELS, r"of shape \(2, 3, 3\)"),
        (PIXELS, LABELS.int(), "labels must be an int64 tensor"),
        (PIXELS, LABELS[:, None], r"labels must be .* of shape \(2, 1\)"),
        (PIXELS, LABELS[:1], "2 images and 1 labels"),
        (PIXELS[:0], LABELS[:0], "at least one image"),
        (PIXELS[:, :0], LABELS, "at least one pixel"),
        (PIXELS, torch.tensor([0, -1]), "got -1 at index 1"),
    ],
)
def test_image_set_refuses(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels)


def test_subset_keeps_the_order_asked_for() -> None:
    images = image_set([0, 1, 0, 1])
    chosen = images.subset([3, 0])
    assert chosen.labels.tolist() == [1, 0]
    assert torch.equal(chosen.images, images.images[[3, 0]])
    with pytest.raises(ValueError, match="at least one image"):
        images.subset([])


def test_image_data_refuses() -> None:
    train, test = image_set([0, 1]), image_set([1])
    with pytest.raises(ValueError, match=r"labels of the test images of toy must lie in 0\.\.1, got 2 at index 1"):
        image_data(train, image_set([0, 2]))
    with pytest.raises(ValueError, match=r"labels of the train images of toy must lie in 0\.\.1, got 5"):
        image_data(image_set([5]), test)
    with pytest.raises(ValueError, match="two classes or more"):
        image_data(image_set([0, 0]), image_set([0]), ("only",))
    with pytest.raises(ValueError, match="one shape"):
        image_data(train, image_set([0], size=5))
    data = image_data(train, test)
    with pytest.raises(ValueError, match=r"mean must be 1 finite number, one a channel, got \[0.1, 0.2\]"):
        replace(data, mean=(0.1, 0.2))
    with pytest.raises(ValueError, match="std must be 1 finite number"):
        replace(data, std=(float("nan"),))
    with pytest.raises(ValueError, match="std must be above 0"):
        replace(data, std=(0.0,))


def test_shape_and_classes() -> None:
    data = image_data(image_set([0, 1], channels=3, size=6), image_set([1], channels=3, size=6))
    assert data.image_shape == (3, 6, 6)
    assert data.num_classes == 2
    assert len(data.train) == 2


@pytest.mark.parametrize("size", [3, 8, 20])
def test_resized_is_antialiased_bilinear(size: int) -> None:
    data = image_data(image_set([0, 1] * 5, size=8), image_set([1], size=8))
    resized = data.resized(size)
    assert resized.image_shape == (1, size, size)
    expected = interpolate(data.train.images.double(), (size, size), mode="bilinear", antialias=True)
    assert resized.train.images.dtype == torch.uint8
    assert (resized.train.images.double() - expected).abs().max() <= 0.5001
    assert torch.equal(resized.train.labels, data.train.labels)
    assert resized.test.images.shape[2:] == (size, size)


def test_resized_to_the_same_size_is_the_same_data() -> None:
    data = image_data(image_set([0, 1], size=8), image_set([1], size=8))
    assert data.resized(8) is data
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        data.resized(0)


@pytest.mark.parametrize("size", [3, 8, 20])
def test_batches_are_of_the_pixels_of_resized_images(size: int) -> None:
    data = image_data(image_set([0, 1] * 5, size=8), image_set([1] * 3, size=8))
    presented, resized = data.presented(size), data.resized(size)
    assert presented.image_shape == resized.image_shape
    assert presented.train.images.shape[2] <= 8  # what grows is not stored
    assert presented.hold_out(0.4, seed=0)[1].image_shape == presented.image_shape
    for split in ("train", "test"):
        pairs = [
            list(evaluation_batches(getattr(images, split), 4, data.mean, data.std, "cpu"))
            for images in (presented, resized)
        ]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*pairs, strict=True))
    loaders = [
        BatchLoader(
            images.train,
            batch_size=4,
            mean=data.mean,
            std=data.std,
            augmentation=Augmentation(crop_padding=1, flip=True),
            seed=3,
            device="cpu",
        )
        for images in (presented, resized)
    ]
    assert all(torch.equal(loaders[0].batch(step)[0], loaders[1].batch(step)[0]) for step in range(5))
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        data.presented(0)


def test_resized_over_several_chunks() -> None:
    train = image_set([0, 1] * 1200, size=2)
    resized = image_data(train, image_set([1], size=2)).resized(3).train
    alone = image_data(train.subset([2399]), image_set([1], size=2)).resized(3).train
    assert torch.equal(resized.images[2399], alone.images[0])


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_hold_out_is_stratified_and_disjoint(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.cat([torch.full((count,), index) for index, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    # Every image carries its own number, so that the two sides can be told apart.
    numbers = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None]
    data = image_data(ImageSet(numbers, labels), image_set([1], size=1), tuple("abcde"[: len(counts)]))
    held = [int(fraction * count + 0.5) for count in counts]
    if not all(0 < part < count for part, count in zip(held, counts, strict=True)):
        with pytest.raises(ValueError, match="fraction must leave an image of every class on each side"):
            data.hold_out(fraction, seed)
        return
    rest, validation = data.hold_out(fraction, seed)
    assert torch.bincount(validation.labels).tolist() == held
    kept, taken = rest.train.images.flatten().tolist(), validation.images.flatten().tolist()
    assert kept == sorted(kept)
    assert taken == sorted(taken)
    assert sorted(kept + taken) == list(range(len(labels)))
    assert torch.equal(labels[torch.tensor(taken)], validation.labels)
    assert rest.test is data.test
    assert torch.equal(data.hold_out(fraction, seed)[1].images, validation.images)


def test_hold_out_depends_on_the_seed_and_not_on_the_global_one() -> None:
    data = image_data(image_set([0, 1] * 50), image_set([1]))
    state = torch.get_rng_state()
    first, second = data.hold_out(0.2, 0)[1], data.hold_out(0.2, 1)[1]
    assert not torch.equal(first.images, second.images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_refuses_the_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        image_data(image_set([0, 1]), image_set([1])).hold_out(fraction, 0)


def test_hold_out_refuses_a_class_without_images() -> None:
    data = image_data(image_set([0] * 20), image_set([0]))
    with pytest.raises(ValueError, match="class 'b' has 0 training images"):
        data.hold_out(0.5, 0)


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = image_set([0] * 7, channels=3, size=5).images
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean), pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(std), pixels.std((0, 2, 3), correction=0).float())
