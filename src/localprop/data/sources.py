"""Where data sets are found: Parquet pairs, torchvision, class folders, and the set inside the package."""

from __future__ import annotations

import contextlib
import lzma
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from localprop.data.augment import Augmentation
from localprop.data.entries import DataEntry
from localprop.data.files import EncodedSet, read_class_folders, read_parquet
from localprop.data.idx import read_idx
from localprop.data.store import DataError, ImageData, ImageSet, channel_statistics, check_labels

EMBEDDED = "fashion-mini.idx.xz"
_DOWNLOAD_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Splits:
    """Holds what a source gives: two image sets, the names of their classes, and groups of classes if it has them."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    super_names: tuple[str, ...] = ()
    super_of: tuple[int, ...] = ()

    def as_data(
        self,
        name: str,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augmentation: Augmentation,
        classes_per_batch: int | None = None,
    ) -> ImageData:
        """Return the data set that these splits are, under a name; without mean or std it takes the training images'.

        Raises:
            DataError: A channel of the training images is constant, and no std is given.
        """
        if mean is None or std is None:
            own_mean, own_std = channel_statistics(self.train.images)
            if std is None and min(own_std) < 1e-9:  # rounding leaves a constant channel just above 0
                raise DataError(f"the training images of {name} have a constant channel; pass std, such as 1 for it")
            mean = own_mean if mean is None else mean
            std = own_std if std is None else std
        return ImageData(
            name=name,
            train=self.train,
            test=self.test,
            class_names=self.class_names,
            mean=tuple(mean),
            std=tuple(std),
            augmentation=augmentation,
            super_names=self.super_names,
            super_of=self.super_of,
            classes_per_batch=classes_per_batch,
        )


def data_root(root: str | None) -> Path:
    """Return where data sets are looked for: `root`, else $LOCALPROP_DATA, else the user cache.

    Raises:
        DataError: The directory named by `root` or the variable does not exist.
    """
    for name, value in (("data.root", root), ("LOCALPROP_DATA", os.environ.get("LOCALPROP_DATA"))):
        if value:
            path = Path(value).expanduser()
            if not path.is_dir():
                raise DataError(f"{name} must be a directory that exists, got {value}; create it or correct the path")
            return path
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "localprop"


def find(name: str, entry: DataEntry, root: Path) -> Splits:
    """Read a named data set: its Parquet files under `root`, else torchvision's layout or download there.

    Args:
        name: What the user calls it.
        entry: What is known of it; class names in a Parquet file go before its own.
        root: Where to look, and where torchvision downloads to.

    Raises:
        DataError: The data are damaged, or not there and cannot be downloaded.
    """
    files = {part: root / f"{entry.stem}-{part}.parquet" for part in (*entry.train_parts, "test")}
    missing = [file.name for file in files.values() if not file.is_file()]
    if len(missing) == len(files):
        return _from_torchvision(name, entry, root, _listed([file.name for file in files.values()]))
    if missing:
        present = [file.name for file in files.values() if file.is_file()]
        raise DataError(f"{root} holds {_listed(present)} but not {_listed(missing)}; put it beside")
    *train, test = (read_parquet(file) for file in files.values())
    found = decoded(train, test, class_names=entry.class_names, channels=entry.image_shape[0])
    return found if found.super_of else replace(found, super_names=entry.super_names, super_of=entry.super_of)


def read_folder(directory: Path, image_size: int | None) -> Splits:
    """Read DIR/train/CLASS/* and DIR/test/CLASS/*; RGB unless every image is gray.

    Args:
        directory: DIR.
        image_size: Pixels a side to resize to; None demands that all images have one size.

    Raises:
        DataError: See `read_class_folders` and `EncodedSet.decode`.
    """
    train = read_class_folders(directory / "train")
    return decoded([train], read_class_folders(directory / "test", train.class_names), size=image_size)


def read_parquet_directory(directory: Path, image_size: int | None) -> Splits:
    """Read the one Parquet pair of a directory; RGB unless every image is gray.

    Args:
        directory: Holds exactly one *-train.parquet and one *-test.parquet.
        image_size: Pixels a side to resize to; None demands that all images have one size.

    Raises:
        DataError: See `read_parquet` and `EncodedSet.decode`.
    """
    pair = []
    for split in ("train", "test"):
        found = sorted(directory.glob(f"*-{split}.parquet"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(f"{directory} must hold exactly one *-{split}.parquet, got {names}; move the others out")
        pair.append(read_parquet(found[0]))
    return decoded(pair[:1], pair[1], size=image_size)


def read_embedded(class_names: tuple[str, ...]) -> Splits:
    """Read fashion-mini, which ships inside the package."""
    data = (resources.files("localprop.data") / "embedded" / EMBEDDED).read_bytes()
    train_images, train_labels, test_images, test_labels = read_idx(lzma.decompress(data), EMBEDDED)
    return Splits(
        ImageSet(train_images[:, None], train_labels.long()),
        ImageSet(test_images[:, None], test_labels.long()),
        class_names,
    )


def decoded(
    train: Sequence[EncodedSet],
    test: EncodedSet,
    *,
    class_names: tuple[str, ...] | None = None,
    channels: int | None = None,
    size: int | None = None,
) -> Splits:
    """Decode the images of a training set, in one part or several, and of a test set.

    Args:
        train: Its parts.
        test: The test set.
        class_names: What is known of the classes already; None takes the first part's, or numbers.
        channels: 1 for gray, 3 for RGB; None for RGB unless every image is gray.
        size: Pixels a side to resize to; None demands that all images have one size.

    Raises:
        DataError: Class names or labels do not fit, or see `EncodedSet.decode`.
    """
    first = train[0]
    names = first.class_names or test.class_names or class_names
    for other in (*train[1:], test):
        if other.class_names not in (None, names):
            raise DataError(f"{first.origin} and {other.origin} name different classes; make them the same")
    if names and class_names and len(names) != len(class_names):
        raise DataError(
            f"{first.origin} names {len(names)} classes instead of {len(class_names)}; if it is another data "
            "set, move it elsewhere and name it parquet:DIR"
        )
    if names is None:
        names = tuple(str(index) for index in range(max(1, int(first.labels.max()) + 1)))
    for encoded in (*train, test):
        check_labels(encoded.labels, len(names), str(encoded.origin))
    if channels is None:
        channels = 1 if all(encoded.is_gray() for encoded in (*train, test)) else 3
    images = _joined([encoded.decode(channels=channels, size=size) for encoded in train])
    super_names, super_of = first.groups(len(names))
    return Splits(images, test.decode(channels=channels, size=size), names, super_names, super_of)


def _from_torchvision(name: str, entry: DataEntry, root: Path, files: str) -> Splits:
    from torchvision import datasets  # a second of start-up that only this source costs

    assert entry.torchvision_name is not None
    dataset = getattr(datasets, entry.torchvision_name)
    ways_out = f"set --data.root or LOCALPROP_DATA to a directory with {files}"
    try:
        with _download_settings():
            parts = {
                part: _image_set(dataset(root, download=True, **entry.torchvision_splits[part]))
                for part in (*entry.train_parts, "test")
            }
    except ImportError as error:
        raise DataError(
            f"{name}: torchvision needs {error.name} to read it; pip install {error.name}, or {ways_out}"
        ) from error
    except Exception as error:  # torchvision raises nearly any type, on a lost network as on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} is not under {root}, and torchvision could neither read its own layout there nor "
            f"download it ({reason}); ways out: {ways_out}, or with torchvision's {entry.torchvision_name} files; "
            "repair the network; or take fashion-mini, which needs no files"
        ) from error
    train = _joined([parts[part] for part in entry.train_parts])
    return Splits(train, parts["test"], entry.class_names, entry.super_names, entry.super_of)


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    if len(parts) == 1:
        return parts[0]
    return ImageSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _image_set(dataset: Any) -> ImageSet:
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] != 3:  # (N, H, W, C)
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return ImageSet(images, torch.as_tensor(labels).long())


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


@contextlib.contextmanager
def _download_settings() -> Iterator[None]:
    """Keep torchvision from waiting for ever, and from writing to standard output."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
