"""Batches for training and evaluation, made from images in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from localprop.data.augment import Augmentation, augment, cut_out
from localprop.data.curriculum import Curriculum
from localprop.data.store import ImageSet, check_statistics, in_size
from localprop.seed import derive


class BatchLoader:
    """Makes training batches as a pure function of the seed and the step.

    Every epoch visits every image once, in an order drawn from (seed, epoch); augmentation is drawn from
    (seed, step). There is no state to save: a run that continues at any step sees the same bits.

    With `classes_per_batch` the order is that of `class_limited_order` in the first `limited_epochs` epochs.

    Args:
        images: Training images; kept on `device` as bytes.
        batch_size: Images a batch, 1 or more; the last batch of an epoch holds what is left.
        mean: Mean of every channel, pixels scaled to 0..1.
        std: Standard deviation of every channel, same scale.
        augmentation: Random changes of the images.
        seed: Seeds order and augmentation.
        device: Where batches are made.
        shuffle: Whether to draw an order; else the images come in their own.
        classes_per_batch: Most classes that a batch holds, 2 to Z - 1; None for no limit.
        limited_epochs: Epochs from the start in which it holds; None for all.

    Attributes:
        curriculum: Which images may be drawn at a step, in place of an epoch's order; None for all. While it holds
            some back, a batch is drawn from (seed, step) without replacement.

    Cost:
        N * C * H * W bytes on `device`, and one permutation of N int64.

    Raises:
        ValueError: `batch_size` is below 1, mean and std do not fit the channels, or the limit cannot be kept.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
        seed: int,
        device: torch.device | str,
        shuffle: bool = True,
        classes_per_batch: int | None = None,
        limited_epochs: int | None = None,
    ) -> None:
        _check_batch_size(batch_size)
        check_statistics(mean, std, images.images.shape[1])
        self.batch_size = batch_size
        self._pixels = images.images.to(device)
        self._labels = images.labels.to(device)
        self._side = images.side
        self._mean, self._std = tuple(mean), tuple(std)
        self._augmentation = augmentation
        self._seed = seed
        self._shuffle = shuffle
        self._drawn: tuple[int, Tensor] | None = None
        self._classes_per_batch = classes_per_batch
        self._limited_epochs = limited_epochs
        self.curriculum: Curriculum | None = None
        if classes_per_batch is not None:
            if not shuffle:
                raise ValueError("classes_per_batch: goes with shuffle=True, got shuffle=False")
            _smallest_piece(images.labels, batch_size, classes_per_batch)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._labels) // self.batch_size)

    @property
    def num_images(self) -> int:
        """Images of the training set."""
        return len(self._labels)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step.

        Args:
            step: Number of the batch since the start of training, 0 or more; its epoch is step // len(self).

        Returns:
            Normalised images, float32, and labels, int64.

        Shape:
            (N, C, H, W) and (N,), N <= batch_size.
        """
        chosen = self.indices(step)
        pixels = in_size(self._pixels.index_select(0, chosen), self._side)
        pixels = augment(pixels, self._augmentation, derive(self._seed, "augment", step))
        x = normalise(pixels, self._mean, self._std)
        x = cut_out(x, self._augmentation.cutout, derive(self._seed, "cutout", step))
        return x, self._labels.index_select(0, chosen)

    def indices(self, step: int) -> Tensor:
        """Return the numbers of the images in the batch of a step, int64.

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}; steps are counted from the start of training")
        epoch, position = divmod(step, len(self))
        start = position * self.batch_size
        pool = self.curriculum.pool(step) if self.curriculum is not None else None
        if pool is not None:
            generator = torch.Generator().manual_seed(derive(self._seed, "curriculum", step))
            size = min(self.batch_size, len(self._labels) - start)
            chosen = pool[torch.randperm(len(pool), generator=generator)[:size]]
            return chosen.to(self._labels.device, non_blocking=True)
        return self._order(epoch)[start : start + self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            epoch = 0
        if self._drawn is None or self._drawn[0] != epoch:
            count = len(self._labels)
            generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
            limited = self._limited_epochs is None or epoch < self._limited_epochs
            if self._classes_per_batch is not None and limited:
                order = class_limited_order(self._labels.cpu(), self.batch_size, self._classes_per_batch, generator)
            elif self._shuffle:
                order = torch.randperm(count, generator=generator)
            else:
                order = torch.arange(count)
            self._drawn = epoch, order.to(self._labels.device)
        return self._drawn[1]


def class_limited_order(labels: Tensor, batch_size: int, classes_per_batch: int, generator: torch.Generator) -> Tensor:
    """Draw an order in which no run of `batch_size` images holds more than `classes_per_batch` classes.

    Each class is shuffled and cut into pieces of at least (batch_size - 1) / (classes_per_batch - 1) images, so that
    a batch meets at most `classes_per_batch` pieces. Piece i of a class with P of them lies at (i + u) / P of the
    epoch, u uniform, which spreads every class over the epoch. Every image comes once.

    Args:
        labels: Class indices. Shape (N,).
        batch_size: Images a batch.
        classes_per_batch: 2 or more.
        generator: Draws on the host.

    Shape: (N,), int64.

    Cost: two sorts of N numbers.

    Raises:
        ValueError: The limit cannot be kept.

    Note: The published sampler (Nokland and Eidnes, ICML 2019) draws the classes of each batch afresh and pops images
        from lists until one is empty.
    """
    smallest = _smallest_piece(labels, batch_size, classes_per_batch)
    counts = torch.bincount(labels)
    pieces = counts // smallest
    shuffled = torch.randperm(len(labels), generator=generator)
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]
    label = labels[shuffled]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[label]
    piece = rank * pieces[label] // counts[label]
    offset = torch.rand(int(pieces.sum()), generator=generator, dtype=torch.float64)
    place = (piece + offset[(pieces.cumsum(0) - pieces)[label] + piece]) / pieces[label]
    return shuffled[place.argsort(stable=True)]


def _smallest_piece(labels: Tensor, batch_size: int, classes_per_batch: int) -> int:
    """Return the fewest images of one class in a row with which the limit holds."""
    counts = torch.bincount(labels)
    num_classes = int((counts > 0).sum())
    if not 2 <= classes_per_batch < num_classes:
        raise ValueError(
            f"classes_per_batch: must be 2 or more and below the {num_classes} classes of the training images, got "
            f"{classes_per_batch}; leave it out for no limit"
        )
    smallest = max(1, -(-(batch_size - 1) // (classes_per_batch - 1)))
    fewest = int(counts[counts > 0].min())
    if fewest < smallest:
        raise ValueError(
            f"classes_per_batch: {classes_per_batch} classes in {batch_size} images need {smallest} training images of "
            f"every class, got {fewest} of class {int((counts == fewest).nonzero()[0])}; raise it or lower batch_size"
        )
    return smallest


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order and unchanged but for normalisation.

    Args:
        images: Images to evaluate on; moved to `device` batch by batch.
        batch_size: Images a batch, 1 or more; the last batch holds what is left.
        mean: Mean of every channel, pixels scaled to 0..1.
        std: Standard deviation of every channel, same scale.
        device: Where the batches are wanted.

    Shape:
        (N, C, H, W) float32 and (N,) int64, N <= batch_size.
    """
    _check_batch_size(batch_size)
    check_statistics(mean, std, images.images.shape[1])
    for pixels, labels in zip(
        torch.split(images.images, batch_size), torch.split(images.labels, batch_size), strict=True
    ):
        yield normalise(in_size(pixels.to(device), images.side), mean, std), labels.to(device)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images / 255 - mean) / std of uint8 images, as float32.

    Shape:
        (N, C, H, W) to (N, C, H, W); mean and std hold C numbers.
    """
    scale = [1 / (255 * spread) for spread in std]
    shift = [-average / spread for average, spread in zip(mean, std, strict=True)]
    factors = torch.tensor([scale, shift])[:, :, None, None].to(images.device, non_blocking=True)
    return images.float().mul_(factors[0]).add_(factors[1])


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 128 is usual")
