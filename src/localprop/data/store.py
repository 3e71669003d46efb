"""Labelled images held in memory as bytes: the record that every source of data ends in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from localprop.data.augment import Augmentation
from localprop.seed import derive

_RESIZE_CHUNK = 1024  # bounds the float copy that interpolation works on


class DataError(ValueError):
    """Tells in one line what is wrong with a file or directory of data, and what to do about it."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Holds images and their labels.

    Attributes:
        images: Pixels, uint8.
        labels: Class indices from 0, int64.
        side: Pixels a side that batches are enlarged to as they are made; None leaves the images as they are.
        attributes: What else is known of each image, by name: numbers from 0, int64. "true_label" is the label that
            another has taken the place of.

    Shape:
        images (N, C, H, W), labels and attributes (N,), N >= 1.

    Raises:
        ValueError: A tensor has the wrong dtype or shape, the set is empty, or a label is negative.
    """

    images: Tensor
    labels: Tensor
    side: int | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be a uint8 tensor of shape (N, C, H, W), got {self.images.dtype} of shape "
                f"{tuple(self.images.shape)}; scale pixels to 0..255 and add the missing axes"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(
                f"labels must be an int64 tensor of shape (N,), got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; give one class index an image, as labels.long()"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"images and labels must be equally many, got {len(self.images)} images and "
                f"{len(self.labels)} labels; give one label an image"
            )
        if self.images.numel() == 0:
            raise ValueError(
                f"images must hold at least one image of at least one pixel, got shape "
                f"{tuple(self.images.shape)}; check where the data come from"
            )
        if int(self.labels.min()) < 0:
            index = int(self.labels.argmin())
            raise ValueError(
                f"labels must be 0 or more, got {int(self.labels[index])} at index {index}; leave unlabelled images out"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image in a batch."""
        _, channels, height, width = self.images.shape
        return (channels, height, width) if self.side is None else (channels, self.side, self.side)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        attributes = {name: values[chosen] for name, values in self.attributes.items()}
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], attributes=attributes)

    def with_random_labels(self, fraction: float, num_classes: int, seed: int) -> ImageSet:
        """Return the images with a fraction of the labels drawn anew, uniformly over all classes.

        The labels before are the attribute "true_label".

        Args:
            fraction: Share of the labels that are drawn, 0 to 1; rounded to whole images.
            num_classes: Z.
            seed: Chooses images and labels.

        Raises:
            ValueError: `fraction` is out of range.

        References: Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017,
            arXiv:1611.03530.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"random_labels must lie between 0 and 1, got {fraction}; 1 draws all labels at random")
        generator = torch.Generator().manual_seed(derive(seed, "random-labels"))
        chosen = torch.randperm(len(self), generator=generator)[: round(fraction * len(self))]
        labels = self.labels.clone()
        labels[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator)
        return replace(self, labels=labels, attributes={**self.attributes, "true_label": self.labels})


@dataclass(frozen=True, eq=False)
class ImageData:
    """Holds a data set for classification: two splits and how to present them to a network.

    Attributes:
        name: What the data set is called.
        train: Training images.
        test: Test images.
        class_names: One name a class, in the order of the labels; two or more.
        mean: Mean of every channel, pixels scaled to 0..1.
        std: Standard deviation of every channel, same scale, above 0.
        augmentation: Random changes of the training images.
        super_names: Names of groups of classes; none for most sets.
        super_of: The group of each class.
        classes_per_batch: Most classes that a training batch holds in the first half of training; None for no limit.

    Raises:
        ValueError: The splits differ in shape, a label has no class, or mean and std do not fit the channels.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    super_names: tuple[str, ...] = ()
    super_of: tuple[int, ...] = ()
    classes_per_batch: int | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"class_names of {self.name} must name two classes or more, got {list(self.class_names)}; "
                "there is nothing to tell apart in one class"
            )
        if self.test.image_shape != self.train.image_shape:
            raise ValueError(
                f"train and test images of {self.name} must have one shape, got "
                f"{self.train.image_shape} and {self.test.image_shape}; "
                "resize them with --image-size"
            )
        for split, images in (("train", self.train), ("test", self.test)):
            check_labels(images.labels, self.num_classes, f"the {split} images of {self.name}")
        check_statistics(self.mean, self.std, self.image_shape[0])

    @property
    def num_classes(self) -> int:
        """Z, the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.train.image_shape

    def resized(self, size: int) -> ImageData:
        """Return the data with square images of `size` pixels a side, bilinear and antialiased.

        Cost:
            N * C * size^2 bytes; nothing where the images have that size already.
        """
        _check_size(size)
        if self.image_shape[1:] == (size, size):
            return self
        return replace(self, train=_resized(self.train, size), test=_resized(self.test, size))

    def presented(self, size: int) -> ImageData:
        """Return the data for batches of square images of `size` pixels a side: the very pixels of `resized`.

        Images that grow are kept as they are, and enlarged batch by batch: 60 000 small ones would fill gigabytes.
        """
        _check_size(size)
        if size * size <= self.image_shape[1] * self.image_shape[2]:
            return self.resized(size)
        return replace(self, train=replace(self.train, side=size), test=replace(self.test, side=size))

    def hold_out(self, fraction: float, seed: int) -> tuple[ImageData, ImageSet]:
        """Split validation images off the training images, the same fraction of every class.

        Args:
            fraction: Share held out, between 0 and 1, both excluded; rounded to whole images class by class.
            seed: Chooses the images.

        Returns:
            The data with fewer training images, and the validation images, both in their original order.

        Raises:
            ValueError: A class would have no image left on one of the two sides.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}; 0.1 holds out a tenth")
        labels = self.train.labels.cpu()
        generator = torch.Generator().manual_seed(derive(seed, "hold-out"))
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for index, class_name in enumerate(self.class_names):
            members = torch.nonzero(labels == index).flatten()
            count = math.floor(fraction * len(members) + 0.5)
            if not 0 < count < len(members):
                raise ValueError(
                    f"fraction must leave an image of every class on each side, got {fraction}: class "
                    f"{class_name!r} has {len(members)} training images, of which {count} would be held out; "
                    "choose another fraction or add images"
                )
            held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
        rest = self.train.subset(torch.nonzero(~held_out).flatten())
        return replace(self, train=rest), self.train.subset(torch.nonzero(held_out).flatten())


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Refuse labels outside 0..num_classes - 1.

    Raises:
        DataError: Names `where` and the first wrong label.
    """
    wrong = torch.nonzero((labels < 0) | (labels >= num_classes)).flatten()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"labels of {where} must lie in 0..{num_classes - 1}, got {int(labels[index])} at index {index}; "
            "correct the label or name more classes"
        )


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Refuse a mean or standard deviation that does not fit images of `channels` channels.

    Raises:
        ValueError: Names the parameter, its value and the constraint.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            raise ValueError(
                f"{name} must be {channels} finite number{'s' * (channels > 1)}, one a channel, got "
                f"{list(values)}; leave it out for the training images' own"
            )
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, got {list(std)}; 1 leaves a constant channel as it is")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel of uint8 images, pixels scaled to 0..1.

    Exact: computed from the histogram of the 256 values.

    Shape:
        images (N, C, H, W); C means, C standard deviations.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).cpu().double()
        average = (counts * values).sum() / counts.sum()
        variance = (counts * (values - average).square()).sum() / counts.sum()
        mean.append(float(average))
        std.append(float(variance.sqrt()))
    return tuple(mean), tuple(std)


def in_size(pixels: Tensor, side: int | None) -> Tensor:
    """Return images of `side` pixels a side, or the images as they are for None; see `ImageSet.side`.

    Shape:
        uint8 (N, C, H, W) to uint8 (N, C, side, side).
    """
    if side is None:
        return pixels
    smooth = interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True)
    return smooth.round_().clamp_(0, 255).to(torch.uint8)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}; 28 and 32 are usual")


def _resized(images: ImageSet, size: int) -> ImageSet:
    chunks = torch.split(images.images, _RESIZE_CHUNK)
    return replace(images, images=torch.cat([in_size(chunk, size) for chunk in chunks]))
