"""Where data sets are found: Parquet pairs, torchvision, class folders, and the set inside the package."""

from __future__ import annotations

import contextlib
import lzma
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from localprop.data.files import EncodedSet, read_class_folders, read_parquet
from localprop.data.idx import read_idx
from localprop.data.store import DataError, ImageSet, check_labels

EMBEDDED = "fashion-mini.idx.xz"
_DOWNLOAD_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Splits:
    """Holds what a source gives: two image sets and the names of their classes."""

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]


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


def find(name: str, torchvision_name: str, root: Path, class_names: tuple[str, ...], channels: int) -> Splits:
    """Read a named data set: its Parquet pair under `root`, else torchvision's layout or download there.

    Args:
        name: Start of the Parquet files' names.
        torchvision_name: Class in `torchvision.datasets`.
        root: Where to look, and where torchvision downloads to.
        class_names: Names of the classes; those in a Parquet file go before them.
        channels: 1 for gray, 3 for RGB.

    Raises:
        DataError: The data are damaged, or not there and cannot be downloaded.
    """
    train, test = root / f"{name}-train.parquet", root / f"{name}-test.parquet"
    if train.is_file() and test.is_file():
        return _decoded(read_parquet(train), read_parquet(test), class_names=class_names, channels=channels)
    if train.is_file() or test.is_file():
        raise DataError(f"{root} holds only one of {train.name} and {test.name}; put the other beside it")
    return _from_torchvision(name, torchvision_name, root, class_names)


def read_folder(directory: Path, image_size: int | None) -> Splits:
    """Read DIR/train/CLASS/* and DIR/test/CLASS/*; RGB unless every image is gray.

    Args:
        directory: DIR.
        image_size: Pixels a side to resize to; None demands that all images have one size.

    Raises:
        DataError: See `read_class_folders` and `EncodedSet.decode`.
    """
    train = read_class_folders(directory / "train")
    return _decoded(train, read_class_folders(directory / "test", train.class_names), size=image_size)


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
    return _decoded(*pair, size=image_size)


def read_embedded(class_names: tuple[str, ...]) -> Splits:
    """Read fashion-mini, which ships inside the package."""
    data = (resources.files("localprop.data") / "embedded" / EMBEDDED).read_bytes()
    train_images, train_labels, test_images, test_labels = read_idx(lzma.decompress(data), EMBEDDED)
    return Splits(
        ImageSet(train_images[:, None], train_labels.long()),
        ImageSet(test_images[:, None], test_labels.long()),
        class_names,
    )


def _decoded(
    train: EncodedSet,
    test: EncodedSet,
    *,
    class_names: tuple[str, ...] | None = None,
    channels: int | None = None,
    size: int | None = None,
) -> Splits:
    names = train.class_names or test.class_names or class_names
    if test.class_names not in (None, names):
        raise DataError(f"{train.origin} and {test.origin} name different classes; make them the same")
    if names and class_names and len(names) != len(class_names):
        raise DataError(
            f"{train.origin} names {len(names)} classes instead of {len(class_names)}; if it is another data "
            "set, move it elsewhere and name it parquet:DIR"
        )
    if names is None:
        names = tuple(str(index) for index in range(max(1, int(train.labels.max()) + 1)))
    for encoded in (train, test):
        check_labels(encoded.labels, len(names), str(encoded.origin))
    if channels is None:
        channels = 1 if train.is_gray() and test.is_gray() else 3
    return Splits(train.decode(channels=channels, size=size), test.decode(channels=channels, size=size), names)


def _from_torchvision(name: str, torchvision_name: str, root: Path, class_names: tuple[str, ...]) -> Splits:
    from torchvision import datasets  # a second of start-up that only this source costs

    dataset = getattr(datasets, torchvision_name)
    try:
        with _download_settings():
            train, test = (_image_set(dataset(root, train=split, download=True)) for split in (True, False))
    except Exception as error:  # torchvision raises nearly any type, on a lost network as on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} is not under {root}, and torchvision could neither read its own layout there nor "
            f"download it ({reason}); ways out: set --data.root or LOCALPROP_DATA to a directory with "
            f"{name}-train.parquet and {name}-test.parquet, or with torchvision's {torchvision_name} files; "
            "repair the network; or take fashion-mini, which needs no files"
        ) from error
    return Splits(train, test, class_names)


def _image_set(dataset: Any) -> ImageSet:
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.as_tensor(dataset.targets))


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
