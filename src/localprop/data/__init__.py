"""Image data sets in memory: by name, from class folders, Parquet files or Hugging Face datasets."""

from localprop.data.augment import Augmentation, augment
from localprop.data.catalogue import load
from localprop.data.entries import CATALOGUE, DataEntry
from localprop.data.hugging_face import from_datasets
from localprop.data.images import read_image
from localprop.data.loader import BatchLoader, evaluation_batches, normalise
from localprop.data.store import DataError, ImageData, ImageSet

__all__ = [
    "CATALOGUE",
    "Augmentation",
    "BatchLoader",
    "DataEntry",
    "DataError",
    "ImageData",
    "ImageSet",
    "augment",
    "evaluation_batches",
    "from_datasets",
    "load",
    "normalise",
    "read_image",
]
