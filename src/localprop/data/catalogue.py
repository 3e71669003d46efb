"""The named data sets: one table, and `load`."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localprop.data import sources
from localprop.data.augment import Augmentation
from localprop.data.store import DataError, ImageData, channel_statistics, check_statistics


@dataclass(frozen=True)
class DataEntry:
    """Describes a named data set.

    Attributes:
        title: Its full name.
        terms: Licence, or the terms of use where there is none.
        image_shape: Shape (C, H, W) of one image.
        num_train: Number of training images.
        num_test: Number of test images.
        class_names: Names of the classes, in the order of the labels.
        mean: Mean of every channel of the training images, pixels scaled to 0..1.
        std: Standard deviation, same scale.
        augmentation: What training images are varied by unless the user says otherwise.
        source: Who made it: authors, title, year.
        torchvision_name: Its class in `torchvision.datasets`; None where it ships inside the package.
    """

    title: str
    terms: str
    image_shape: tuple[int, int, int]
    num_train: int
    num_test: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    source: str
    torchvision_name: str | None


_FASHION = DataEntry(
    title="Fashion-MNIST",
    terms="MIT, Zalando SE",
    image_shape=(1, 28, 28),
    num_train=60_000,
    num_test=10_000,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    augmentation=Augmentation(flip=True),
    source=(
        "H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
        "Learning Algorithms, 2017. arXiv:1708.07747"
    ),
    torchvision_name="FashionMNIST",
)

CATALOGUE: dict[str, DataEntry] = {
    "fashion-mini": replace(
        _FASHION,
        title="Fashion-MNIST, the first 1,000 training and 200 test images of each class",
        num_train=10_000,
        num_test=2_000,
        mean=(0.2867,),
        std=(0.3540,),
        torchvision_name=None,
    ),
    "fashion-mnist": _FASHION,
    "mnist": DataEntry(
        title="MNIST handwritten digits",
        terms="CC BY-SA 3.0, Y. LeCun, C. Cortes, C. Burges",
        image_shape=(1, 28, 28),
        num_train=60_000,
        num_test=10_000,
        class_names=tuple("0123456789"),
        mean=(0.1307,),
        std=(0.3081,),
        augmentation=Augmentation(),
        source=(
            "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-Based Learning Applied to Document Recognition, 1998"
        ),
        torchvision_name="MNIST",
    ),
    "cifar10": DataEntry(
        title="CIFAR-10",
        terms="no formal licence; free for research, cite the source",
        image_shape=(3, 32, 32),
        num_train=50_000,
        num_test=10_000,
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=Augmentation(crop_padding=4, flip=True),
        source="A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images, 2009",
        torchvision_name="CIFAR10",
    ),
}

_DIRECTORIES: dict[str, Callable[[Path, int | None], sources.Splits]] = {
    "folder": sources.read_folder,
    "parquet": sources.read_parquet_directory,
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
    classes_per_batch: int | None = None,
) -> ImageData:
    """Load a data set by name.

    Args:
        name: A name of `CATALOGUE`, folder:DIR (DIR/train/CLASS/*, DIR/test/CLASS/*) or parquet:DIR (one
            *-train.parquet, one *-test.parquet).
        root: Where named sets are looked for; else $LOCALPROP_DATA, else the user cache.
        image_size: Pixels a side to resize all images to; None keeps their size.
        mean: Mean of every channel, pixels scaled to 0..1; None takes the training images'.
        std: Standard deviation of every channel, same scale, above 0; None takes the training images'.
        crop_padding: Padding of the random crop in pixels, 0 for no crop; None takes the set's default.
        flip: Whether to mirror training images at random; None takes the set's default.
        classes_per_batch: Most classes that a batch holds in the first half of training; None for no limit.

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
    )
    if entry:
        mean = entry.mean if mean is None else mean
        std = entry.std if std is None else std
        check_statistics(mean, std, entry.image_shape[0])  # before the time that reading takes
        splits = _read_named(name, entry, root)
    else:
        splits = _read_directory(name, image_size)
    if root is not None and (entry is None or entry.torchvision_name is None):
        warnings.warn(f"data.root is ignored: {name} is not looked for under it", UserWarning, stacklevel=2)
    if mean is None or std is None:
        own_mean, own_std = channel_statistics(splits.train.images)
        if std is None and min(own_std) < 1e-9:  # rounding leaves a constant channel just above 0
            raise DataError(f"the training images of {name} have a constant channel; pass std, such as 1 for it")
        mean = own_mean if mean is None else mean
        std = own_std if std is None else std
    data = ImageData(
        name=name,
        train=splits.train,
        test=splits.test,
        class_names=splits.class_names,
        mean=tuple(mean),
        std=tuple(std),
        augmentation=augmentation,
        classes_per_batch=classes_per_batch,
    )
    return data if image_size is None else data.resized(image_size)


def _read_named(name: str, entry: DataEntry, root: str | None) -> sources.Splits:
    if entry.torchvision_name is None:
        return sources.read_embedded(entry.class_names)
    directory = sources.data_root(root)
    splits = sources.find(name, entry.torchvision_name, directory, entry.class_names, entry.image_shape[0])
    shape = tuple(splits.train.images.shape[1:])
    if shape != entry.image_shape:
        raise DataError(
            f"{name} under {directory} holds images of shape {shape} instead of {entry.image_shape}; if it "
            "is another data set, move it elsewhere and name it parquet:DIR"
        )
    return splits


def _read_directory(name: str, image_size: int | None) -> sources.Splits:
    kind, colon, directory = name.partition(":")
    if colon and directory and kind in _DIRECTORIES:
        return _DIRECTORIES[kind](Path(directory).expanduser(), image_size)
    known = [*CATALOGUE, *(f"{kind}:DIR" for kind in _DIRECTORIES)]
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    raise ValueError(f"data must be one of {', '.join(known)}, got {name!r}; did you mean {nearest!r}?")
