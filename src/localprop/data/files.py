"""Encoded images and their labels, from Parquet files and class folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from localprop.data.images import decode, is_gray
from localprop.data.store import DataError, ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """Holds images as they stand in files, one or more.

    Attributes:
        origin: The file or directory that they come from, or what else an error calls it.
        sources: Every image: its bytes, or its own file.
        labels: Class indices, int64.
        class_names: Names of the classes where the origin gives them.
        super_labels: The group of classes that each image belongs to, int64, where the origin gives it.
        super_names: Names of the groups where the origin gives them.

    Raises:
        DataError: There are no images.
    """

    origin: Path | str
    sources: Sequence[bytes | Path]
    labels: Tensor
    class_names: tuple[str, ...] | None
    super_labels: Tensor | None = None
    super_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.sources) == 0:
            raise DataError(f"{self.origin} holds no images; check that it is the right one")

    def place(self, index: int) -> str:
        """Say where an image stands."""
        source = self.sources[index]
        return f"{self.origin}, row {index}," if isinstance(source, bytes) else str(source)

    def is_gray(self) -> bool:
        """Tell whether every image is stored without colour."""
        return all(is_gray(source, self.place(index)) for index, source in enumerate(self.sources))

    def groups(self, num_classes: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the names of the groups of classes, and the group of each class; nothing where there are none.

        Raises:
            DataError: A class has images in two groups, or no image.
        """
        if self.super_labels is None:
            return (), ()
        pairs = torch.unique(torch.stack([self.labels, self.super_labels], 1), dim=0).tolist()
        if [label for label, _ in pairs] != list(range(num_classes)) or min(group for _, group in pairs) < 0:
            raise DataError(
                f"{self.origin} must put every class into one group by its column 'coarse_label'; correct it, or leave "
                "the column out"
            )
        count = max(group for _, group in pairs) + 1
        names = self.super_names or tuple(str(index) for index in range(count))
        if len(names) < count:
            raise DataError(f"{self.origin} names {len(names)} groups of classes, but has {count}; name them all")
        return names, tuple(group for _, group in pairs)

    def decode(self, *, channels: int, size: int | None) -> ImageSet:
        """Decode every image.

        Args:
            channels: 1 for gray, 3 for RGB.
            size: Pixels a side to resize to; None keeps the images' own size.

        Raises:
            DataError: An image is damaged, or differs in size from the first.
        """
        first = decode(self.sources[0], self.place(0), channels=channels, size=size)
        pixels = np.empty((len(self.sources), *first.shape), np.uint8)
        for index, source in enumerate(self.sources):
            image = decode(source, self.place(index), channels=channels, size=size)
            if image.shape != pixels.shape[1:]:
                raise DataError(
                    f"{self.place(index)} is {_size(image.shape)} pixels, {self.place(0)} is "
                    f"{_size(first.shape)}; pass --image-size to resize them all"
                )
            pixels[index] = image
        return ImageSet(torch.from_numpy(pixels), self.labels)


def read_parquet(path: Path) -> EncodedSet:
    """Read a Hub-style Parquet file: columns image ({bytes, path} or bytes), label, and coarse_label if it is there.

    Raises:
        DataError: The file is damaged, or a column is missing, of another type, or has gaps.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as Parquet ({reason}); copy or download it again") from error
    for column in ("image", "label"):
        if column not in table.column_names:
            raise DataError(f"{path} has no column {column!r} but {table.column_names}; rename the column")
    return from_table(table, path)


def from_table(table: pa.Table, origin: Path | str, *, image: str = "image", label: str = "label") -> EncodedSet:
    """Take encoded images and their labels out of a table.

    Args:
        table: Holds the columns, and coarse_label if there are groups of classes.
        origin: What an error calls the table.
        image: The column of images, {bytes, path} or bytes.
        label: The column of class indices.

    Raises:
        DataError: A column is of another type, or has gaps.
    """
    images = table.column(image).combine_chunks()
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(
            f"{origin} holds {images.type} in column {image!r}; it must be encoded images, as bytes or {{bytes, path}}"
        )
    integers = {
        name: table.column(name).combine_chunks() for name in (label, "coarse_label") if name in table.column_names
    }
    for column, values in integers.items():
        if not pa.types.is_integer(values.type):
            raise DataError(f"{origin} holds {values.type} in column {column!r}; it must be class indices, int64")
    for column, values in {image: images, **integers}.items():
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(f"{origin}, row {row}, has no {column}; fill it in or leave the row out")
    labels = {name: torch.from_numpy(v.to_numpy(zero_copy_only=False).astype(np.int64)) for name, v in integers.items()}
    return EncodedSet(
        origin,
        images.to_pylist(),
        labels[label],
        _class_names(table.schema.metadata, label),
        labels.get("coarse_label") if label != "coarse_label" else None,
        _class_names(table.schema.metadata, "coarse_label"),
    )


def read_class_folders(directory: Path, class_names: tuple[str, ...] | None = None) -> EncodedSet:
    """List the images of a directory that holds one folder a class.

    Args:
        directory: Holds CLASS/FILE with the endings of `SUFFIXES`; other and hidden files are passed over.
        class_names: The classes that may appear; None takes the folders' names, sorted.

    Raises:
        DataError: The directory or its classes are missing, a class is empty, or one is unknown.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is no directory; lay images out as DIR/train/CLASS/* and DIR/test/CLASS/*")
    folders = sorted(entry for entry in directory.iterdir() if entry.is_dir() and entry.name[0] != ".")
    names = class_names or tuple(folder.name for folder in folders)
    sources: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
        if folder.name not in names:
            raise DataError(f"{folder} is a class without training images; the classes are {', '.join(names)}")
        if not files:
            raise DataError(f"{folder} holds no image ({' '.join(SUFFIXES)}); fill or remove it")
        sources += files
        labels += [names.index(folder.name)] * len(files)
    if not folders:
        raise DataError(f"{directory} holds no class folders; lay images out as {directory}/CLASS/*")
    return EncodedSet(directory, sources, torch.tensor(labels), names)


def _size(shape: tuple[int, ...]) -> str:
    _, height, width = shape
    return f"{width}x{height}"


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
