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
        origin: The file or directory that they come from.
        sources: Every image: its bytes, or its own file.
        labels: Class indices, int64.
        class_names: Names of the classes where the origin gives them.

    Raises:
        DataError: There are no images.
    """

    origin: Path
    sources: Sequence[bytes | Path]
    labels: Tensor
    class_names: tuple[str, ...] | None

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
    """Read a Hub-style Parquet file: columns image ({bytes, path} or bytes) and label.

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
    images = table.column("image").combine_chunks()
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(
            f"{path} holds {images.type} in column 'image'; it must be encoded images, as bytes or {{bytes, path}}"
        )
    labels = table.column("label").combine_chunks()
    if not pa.types.is_integer(labels.type):
        raise DataError(f"{path} holds {labels.type} in column 'label'; it must be class indices, int64")
    for column, values in (("image", images), ("label", labels)):
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(f"{path}, row {row}, has no {column}; fill it in or leave the row out")
    return EncodedSet(
        path,
        images.to_pylist(),
        torch.from_numpy(labels.to_numpy(zero_copy_only=False).astype(np.int64)),
        _class_names(table.schema.metadata),
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


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
