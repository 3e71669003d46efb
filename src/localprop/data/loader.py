"""Batches for training and evaluation, made from images in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from localprop.data.augment import Augmentation, augment
from localprop.data.store import ImageSet, check_statistics
from localprop.seed import derive


class BatchLoader:
    """Makes training batches as a pure function of the seed and the step.

    Every epoch visits every image once, in an order drawn from (seed, epoch); augmentation is drawn from
    (seed, step). There is no state to save: a run that continues at any step sees the same bits.

    Args:
        images: Training images; kept on `device` as bytes.
        batch_size: Images a batch, 1 or more; the last batch of an epoch holds what is left.
        mean: Mean of every channel, pixels scaled to 0..1.
        std: Standard deviation of every channel, same scale.
        augmentation: Random changes of the images.
        seed: Seeds order and augmentation.
        device: Where batches are made.
        shuffle: Whether to draw an order; else the images come in their own.

    Cost:
        N * C * H * W bytes on `device`, and one permutation of N int64.

    Raises:
        ValueError: `batch_size` is below 1, or mean and std do not fit the channels.
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
    ) -> None:
        _check_batch_size(batch_size)
        check_statistics(mean, std, images.images.shape[1])
        self.batch_size = batch_size
        self._pixels = images.images.to(device)
        self._labels = images.labels.to(device)
        self._mean, self._std = tuple(mean), tuple(std)
        self._augmentation = augmentation
        self._seed = seed
        self._shuffle = shuffle
        self._drawn: tuple[int, Tensor] | None = None

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
        pixels = augment(self._pixels.index_select(0, chosen), self._augmentation, derive(self._seed, "augment", step))
        return normalise(pixels, self._mean, self._std), self._labels.index_select(0, chosen)

    def indices(self, step: int) -> Tensor:
        """Return the numbers of the images in the batch of a step, int64.

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}; steps are counted from the start of training")
        epoch, position = divmod(step, len(self))
        start = position * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            epoch = 0
        if self._drawn is None or self._drawn[0] != epoch:
            count = len(self._labels)
            if self._shuffle:
                generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
                order = torch.randperm(count, generator=generator)
            else:
                order = torch.arange(count)
            self._drawn = epoch, order.to(self._labels.device)
        return self._drawn[1]


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
        yield normalise(pixels.to(device), mean, std), labels.to(device)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images / 255 - mean) / std of uint8 images, as float32.

    Shape:
        (N, C, H, W) to (N, C, H, W); mean and std hold C numbers.
    """
    scale = [1 / (255 * spread) for spread in std]
    shift = [-average / spread for average, spread in zip(mean, std, strict=True)]
    factors = torch.tensor([scale, shift], device=images.device)[:, :, None, None]
    return images.float().mul_(factors[0]).add_(factors[1])


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 128 is usual")
