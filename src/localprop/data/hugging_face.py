"""Datasets of Hugging Face: objects of the package `datasets`, or what it saved to disk."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from localprop.data.augment import Augmentation
from localprop.data.files import EncodedSet, from_table
from localprop.data.sources import Splits, decoded
from localprop.data.store import DataError, ImageData
from localprop.errors import nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def from_datasets(
    dataset: DatasetDict,
    *,
    image: str | None = None,
    label: str | None = None,
    train: str = "train",
    test: str = "test",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
) -> ImageData:
    """Take labelled images out of a Hugging Face dataset, into memory.

    Args:
        dataset: Its splits.
        image: The column of images: encoded (`datasets.Image`, bytes), or arrays of integers 0..255 of shape (H, W),
            (H, W, C) or (C, H, W). None takes "image", or else the only column of type `datasets.Image`.
        label: The column of class indices. None takes "label", or else the only column of type `datasets.ClassLabel`.
        train: The split to train on.
        test: The split to test on.
        image_size: Pixels a side to resize all images to; None demands that all have one size.
        mean: Mean of every channel, pixels scaled to 0..1; None takes the training images'.
        std: Standard deviation of every channel, same scale, above 0; None takes the training images'.
        augmentation: Random changes of the training images; None for none.

    Cost: N * C * H * W bytes, and once the encoded images.

    Raises:
        ValueError: The package `datasets` is not installed, or the object is none of its splits in memory.
        DataError: A split or column is missing or of another type, or an image or a label cannot be used.

    Note: Transforms of a dataset are refused, as they are run anew for each access; make them last with `map`.
    """
    found = _splits(dataset, "the dataset", image=image, label=label, names=(train, test), image_size=image_size)
    return found.as_data("the dataset", mean=mean, std=std, augmentation=augmentation or Augmentation())


def read_saved(directory: Path, image_size: int | None) -> Splits:
    """Read the splits "train" and "test" that `DatasetDict.save_to_disk` wrote.

    Args:
        directory: What was given to it.
        image_size: Pixels a side to resize to; None demands that all images have one size.

    Raises:
        ValueError: The package `datasets` is not installed.
        DataError: Nothing was saved there, or see `from_datasets`.
    """
    datasets = _package()
    try:
        saved = datasets.load_from_disk(str(directory))
    except MemoryError:
        raise
    except Exception as error:  # nearly any type, on damaged files: of Arrow, JSON, keys, and the file system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{directory} cannot be read ({reason}); name what DatasetDict.save_to_disk wrote; a dataset of the "
            "Hub must be saved first"
        ) from error
    return _splits(saved, str(directory), image=None, label=None, names=("train", "test"), image_size=image_size)


def _splits(
    dataset: DatasetDict,
    origin: str,
    *,
    image: str | None,
    label: str | None,
    names: tuple[str, str],
    image_size: int | None,
) -> Splits:
    datasets = _package()
    if isinstance(dataset, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise ValueError(
            f"{origin} is streamed, and training goes over images in memory many times, in a drawn order; load it "
            "without streaming=True"
        )
    if isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{origin} has no splits; make some, as dataset.train_test_split(test_size=0.2)")
    if not isinstance(dataset, Mapping):
        raise ValueError(f"{origin} must be a datasets.DatasetDict, got a {type(dataset).__name__}")
    for name in names:
        if not isinstance(dataset.get(name), datasets.Dataset):
            raise DataError(
                f"{origin} has no split {name!r}{nearest(name, map(str, dataset))} but {list(dataset)}; rename one, "
                "make it by train_test_split(test_size=0.2), or from Python say which to take by train= and test="
            )
    train, test = (_encoded(dataset[name], f"split {name} of {origin}", image, label) for name in names)
    return decoded([train], test, size=image_size)


def _encoded(split: Dataset, origin: str, image: str | None, label: str | None) -> EncodedSet:
    from datasets.table import embed_table_storage

    datasets = _package()
    if len(split) == 0:
        raise DataError(f"{origin} is empty; check how it was filtered")
    if split.format["type"] == "custom":
        raise DataError(f"{origin} has a transform, which would not be applied; make it last with map, or reset_format")
    image = _column(split, origin, "image", image, datasets.Image)
    label = _column(split, origin, "label", label, datasets.ClassLabel)
    if image == label:
        raise DataError(f"{origin}: image and label must be two columns, got {image!r} for both")
    for column, kind, fix in (
        (image, "images", "cast_column({!r}, datasets.Image())"),
        (label, "class indices", "class_encode_column({!r})"),
    ):
        if split.features[column] == datasets.Value("string"):
            raise DataError(
                f"{origin} holds text in column {column!r}; make {kind} of it, as dataset.{fix.format(column)}"
            )
    kept = [image, label, *({"coarse_label"} & set(split.column_names) - {image, label})]
    rows = split.select_columns(kept)
    try:
        table = embed_table_storage(rows.with_format("arrow")[:])  # reads the files of images that are only named
    except MemoryError:
        raise
    except Exception as error:  # what fsspec's file systems, local or not, raise: they share no class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{origin}: the images of column {image!r} cannot be read ({reason})") from error
    if isinstance(split.features[image], datasets.Array2D | datasets.Array3D | datasets.List):
        arrays = rows.select_columns([image]).with_format("numpy")
        encoded = [
            _as_png(np.asarray(row[image]), f"{origin}, row {number}, column {image!r}")
            for number, row in enumerate(arrays)
        ]
        table = table.set_column(0, image, pa.array(encoded, pa.large_binary()))
    found = from_table(table, origin, image=image, label=label)
    if int(found.labels.min()) < 0:
        raise DataError(
            f"{origin}, row {int(found.labels.argmin())}, has the label {int(found.labels.min())}, which stands for "
            f"none; leave such rows out, as dataset.filter(lambda row: row[{label!r}] >= 0)"
        )
    return found


def _column(split: Dataset, origin: str, role: str, wanted: str | None, kind: type) -> str:
    """Return the column of a role: the one asked for, or that of the role's name, or the only one of its kind."""
    columns = split.column_names
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{origin} has no column {wanted!r}{nearest(wanted, columns)} but {columns}")
        return wanted
    if role in columns:
        return role
    candidates = [name for name, feature in split.features.items() if isinstance(feature, kind)]
    if len(candidates) != 1:
        several = f"several columns of type {kind.__name__}, {candidates}" if candidates else f"the columns {columns}"
        raise DataError(
            f"{origin} has {several}; rename the {role} to {role!r}, or from Python say which it is, as "
            f"{role}={(candidates or columns)[0]!r}"
        )
    return str(candidates[0])


def _as_png(pixels: NDArray[Any], place: str) -> bytes:
    """Encode an array of pixels without loss."""
    if pixels.dtype.kind not in "biuf":
        raise DataError(f"{place}, must be an array of numbers, with rows of one length; correct it or leave it out")
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise DataError(
            f"{place}, must hold integers 0..255, got {pixels.dtype} in {pixels.min()} .. {pixels.max()}; convert it, "
            "as (255 * x).round().astype('uint8')"
        )
    is_channels = [size in (1, 3) for size in pixels.shape]
    if pixels.ndim == 3 and is_channels[0] != is_channels[2]:
        pixels = pixels.transpose(1, 2, 0) if is_channels[0] else pixels
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    elif pixels.ndim != 2:
        raise DataError(
            f"{place}, must be an image of shape (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels, got "
            f"{pixels.shape}; convert the column to datasets.Image"
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(file, "png", compress_level=0)
    return file.getvalue()


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("the package datasets is not installed; pip install 'localprop[hub]'") from error
    return datasets
