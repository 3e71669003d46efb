"""Loading a data set by its name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from localprop.data import backgrounds, hierarchical, hugging_face, sources
from localprop.data.augment import Augmentation
from localprop.data.entries import CATALOGUE, DataEntry
from localprop.data.store import DataError, ImageData, ImageSet, check_statistics

_DIRECTORIES: dict[str, Callable[[Path, int | None], sources.Splits]] = {
    "folder": sources.read_folder,
    "parquet": sources.read_parquet_directory,
    "hf": hugging_face.read_saved,
}

_GENERATORS: dict[str, Callable[[sources.Splits, int, int], sources.Splits]] = {
    "hierarchical-digits": hierarchical.generate,
    "coloured-digits": backgrounds.coloured,
    "textured-digits": backgrounds.textured,
}


def load(
    name: str,
    *,
    root: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_padding: int | None = None,
    flip: bool | None = None,
    cutout: int | None = None,
    classes_per_batch: int | None = None,
    random_labels: float | None = None,
) -> ImageData:
    """Load a data set by name.

    Args:
        name: A name of `CATALOGUE`, folder:DIR (DIR/train/CLASS/*, DIR/test/CLASS/*), parquet:DIR (one
            *-train.parquet, one *-test.parquet) or hf:DIR (saved by Hugging Face `datasets`).
        root: Where named sets are looked for; else $LOCALPROP_DATA, else the user cache.
        image_size: Pixels a side to resize all images to; None keeps their size.
        mean: Mean of every channel, pixels scaled to 0..1; None takes the training images'.
        std: Standard deviation of every channel, same scale, above 0; None takes the training images'.
        crop_padding: Padding of the random crop in pixels, 0 for no crop; 2 is the jitter usual for MNIST. None takes
            the set's default.
        flip: Whether to mirror training images at random; None takes the set's default.
        cutout: Pixels a side of a square hole in every training image, 0 for none; None takes the set's default.
        classes_per_batch: Most classes that a batch holds in the first half of training; None for no limit.
        random_labels: Share of the training labels that are drawn at random, 0 to 1; what is learned of those is
            learned by heart. None for none.

    Raises:
        ValueError: The name is unknown, or a setting does not fit.
        DataError: The data cannot be found or read.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}; 28 and 32 are usual")
    entry = CATALOGUE.get(name)
    default = entry.augmentation if entry else Augmentation()
    augmentation = Augmentation(
        crop_padding=default.crop_padding if crop_padding is None else crop_padding,
        flip=default.flip if flip is None else flip,
        cutout=default.cutout if cutout is None else cutout,
    )
    if entry:
        mean = entry.mean if mean is None else mean
        std = entry.std if std is None else std
        for values in (mean, std):
            if values is not None:  # before the time that reading takes
                check_statistics(mean or values, std or [1.0] * len(values), entry.image_shape[0])
        splits = _read_named(name, entry, root)
    else:
        splits = _read_directory(name, image_size)
    if root is not None and (entry is None or entry.torchvision_name is None):
        warnings.warn(f"data.root is ignored: {name} is not looked for under it", UserWarning, stacklevel=2)
    if random_labels:
        noisy = splits.train.with_random_labels(random_labels, len(splits.class_names), seed=0)
        splits = replace(splits, train=noisy)
    data = splits.as_data(name, mean=mean, std=std, augmentation=augmentation, classes_per_batch=classes_per_batch)
    return data if image_size is None else data.resized(image_size)


def _read_named(name: str, entry: DataEntry, root: str | None) -> sources.Splits:
    if entry.torchvision_name is None:
        return sources.read_embedded(entry.class_names)
    if entry.groups_of is not None:
        return _grouped(_read_named(entry.groups_of, CATALOGUE[entry.groups_of], root))
    if entry.made_of is not None:
        digits = _read_named(entry.made_of, CATALOGUE[entry.made_of], root)
        return _GENERATORS[name](digits, entry.num_train, entry.num_test)
    directory = sources.data_root(root)
    splits = sources.find(name, entry, directory)
    shape = tuple(splits.train.images.shape[1:])
    if shape != entry.image_shape:
        raise DataError(
            f"{name} under {directory} holds images of shape {shape} instead of {entry.image_shape}; if it "
            "is another data set, move it elsewhere and name it parquet:DIR"
        )
    return splits


def _grouped(splits: sources.Splits) -> sources.Splits:
    """Make the groups of classes the classes."""
    group = torch.tensor(splits.super_of)
    train, test = (ImageSet(part.images, group[part.labels]) for part in (splits.train, splits.test))
    return sources.Splits(train, test, splits.super_names)


def _read_directory(name: str, image_size: int | None) -> sources.Splits:
    kind, colon, directory = name.partition(":")
    if colon and directory and kind in _DIRECTORIES:
        return _DIRECTORIES[kind](Path(directory).expanduser(), image_size)
    known = [*CATALOGUE, *(f"{kind}:DIR" for kind in _DIRECTORIES)]
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    raise ValueError(f"data must be one of {', '.join(known)}, got {name!r}; did you mean {nearest!r}?")
