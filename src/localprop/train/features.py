"""What the steps of a phase are given: images, or features of frozen blocks, computed each step or kept on disk."""

from __future__ import annotations

import os
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from localprop.data.loader import BatchLoader
from localprop.rules.base import Rule
from localprop.train.assemble import in_layout
from localprop.train.phases import Pairs, inputs_of, reads_features
from localprop.types import Phase


class Inputs:
    """Makes the batches of one phase after the other.

    Args:
        rule: Gives the features.
        loader: Gives the images of a step.
        cache_mb: Most megabytes (10^6 bytes) that features may take on disk; None keeps none.
        directory: Where they are kept.
    """

    def __init__(self, rule: Rule, loader: BatchLoader, *, cache_mb: int | None, directory: Path) -> None:
        self.rule = rule
        self.loader = loader
        self.cache_mb = cache_mb
        self.directory = directory
        self._phase: Phase | None = None
        self._cache: FeatureCache | None = None

    def enter(self, phase: Phase, training_set: Pairs) -> str:
        """Turn to a phase, and say in a few words where its inputs come from.

        Args:
            phase: The phase that begins, or was under way.
            training_set: All training images in order, without augmentation; gone through if features are kept.
        """
        self._phase, self._cache = phase, None
        if not reads_features(phase):
            return "on images"
        if self.cache_mb is None:
            return "on features"
        features = ((inputs_of(phase, self.rule, x), y) for x, y in training_set)
        first = next(features)
        num_images = self.loader.num_images
        megabytes = num_images * first[0][0].numel() * first[0].element_size() / 1e6
        if megabytes > self.cache_mb:
            return (
                f"on features computed each step: {megabytes:.0f} MB of them are more than "
                f"--feature-cache-mb {self.cache_mb}"
            )
        self._cache = FeatureCache(chain([first], features), num_images=num_images, directory=self.directory)
        return f"on {megabytes:.0f} MB of cached features"

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return batch `number` of the run: inputs of the phase, and labels."""
        assert self._phase is not None
        if self._cache is not None:
            h, y = self._cache.batch(self.loader.indices(number))
            return in_layout(h, self.rule), y
        x, y = self.loader.batch(number)
        return inputs_of(self._phase, self.rule, in_layout(x, self.rule)), y


class FeatureCache:
    """Hold the features of every training image, in the order of the images, in a memory map.

    The file never has a name, so that a process that is killed leaves nothing behind.

    Args:
        batches: Features and labels of all images, in order; at least one batch.
        num_images: How many there are.
        directory: Where the file lies.

    Shape: batches of (N, ...) and (N,).

    Cost: num_images times the bytes of one image's features, on disk.

    Raises:
        OSError: The disk is full.
    """

    def __init__(self, batches: Pairs, *, num_images: int, directory: Path) -> None:
        self._values = torch.empty(0)
        self._labels = torch.empty(num_images, dtype=torch.int64)
        self._device = torch.device("cpu")
        start = 0
        for h, y in batches:
            if start == 0:
                self._device = h.device
                self._values = _mapped((num_images, *h.shape[1:]), h.dtype, directory)
            self._values[start : start + len(h)] = h.cpu()
            self._labels[start : start + len(h)] = y.cpu()
            start += len(h)
        assert start == num_images, (start, num_images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and labels of images by their numbers, on the device that the features came from."""
        chosen = indices.cpu()
        return self._values[chosen].to(self._device), self._labels[chosen].to(self._device)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, directory: Path) -> Tensor:
    size = torch.empty(shape, dtype=dtype, device="meta").nbytes
    with tempfile.TemporaryFile(dir=directory) as file:  # the map outlives the descriptor
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a dead process in the map
            os.posix_fallocate(file.fileno(), 0, size)
        values = np.memmap(file, dtype=np.uint8, mode="w+", shape=(size,))
    return torch.from_numpy(values).view(dtype).view(shape)
