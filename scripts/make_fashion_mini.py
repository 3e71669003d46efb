"""Make the embedded data set fashion-mini from the four original files of Fashion-MNIST.

    python scripts/make_fashion_mini.py SOURCE_DIR OUTPUT

SOURCE_DIR holds {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. OUTPUT is written as four IDX arrays (train
images, train labels, test images, test labels) one after another, compressed with xz; the same input gives
the same bytes. Of each class the first 1,000 training and 200 test images are taken, in their original order.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import struct
from pathlib import Path

import torch
from torch import Tensor

from localprop.data.idx import read_idx

SPLITS = {"train": 1_000, "t10k": 200}
NUM_CLASSES = 10


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Return the indices, ascending, of the first `count` items of every class."""
    chosen = [torch.nonzero(labels == index).flatten()[:count] for index in range(NUM_CLASSES)]
    return torch.cat(chosen).sort().values


def encode_idx(array: Tensor) -> bytes:
    """Write an array of bytes in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


def read_original(path: Path) -> Tensor:
    """Read one original file, which holds one array."""
    (array,) = read_idx(gzip.decompress(path.read_bytes()), str(path))
    return array


def make(source: Path) -> bytes:
    """Return the content of the embedded file."""
    arrays = []
    for split, count in SPLITS.items():
        images = read_original(source / f"{split}-images-idx3-ubyte.gz")
        labels = read_original(source / f"{split}-labels-idx1-ubyte.gz")
        chosen = first_of_each_class(labels, count)
        arrays += [encode_idx(images[chosen]), encode_idx(labels[chosen])]
    return lzma.compress(b"".join(arrays), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE_DIR")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    arguments = parser.parse_args()
    arguments.output.write_bytes(make(arguments.source))


if __name__ == "__main__":
    main()
