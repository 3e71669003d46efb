"""Which images a curriculum draws, and that nothing but the seed and the step decides it."""

from __future__ import annotations

import math

import pytest
import torch

from localprop.data.augment import Augmentation
from localprop.data.curriculum import Curriculum, order_of
from localprop.data.loader import BatchLoader
from localprop.data.store import ImageSet


def loader(num_images: int = 100, batch_size: int = 8) -> BatchLoader:
    pixels = torch.arange(num_images, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    labels = torch.arange(num_images) % 5
    return BatchLoader(
        ImageSet(pixels, labels), batch_size=batch_size, mean=[0.0], std=[1.0], augmentation=Augmentation(), seed=3,
        device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("pacing", ["linear", "exponential"])
def test_the_pool_grows_as_the_formula_says(pacing: str):
    curriculum = Curriculum(torch.arange(1000).flip(0), pacing, 40)
    for step in range(40):
        p = step / 40
        share = 0.2 + 0.8 * p / 0.5 if pacing == "linear" else 0.2 ** (1 - p / 0.5)
        pool = curriculum.pool(step)
        if p >= 0.5:
            assert pool is None
        else:
            assert math.ceil(share * 1000 - 1e-9) <= len(pool) <= math.ceil(share * 1000 + 1e-9)
            assert torch.equal(pool, curriculum.order[: len(pool)])


def test_every_first_part_of_the_order_holds_all_classes_alike_and_their_easiest():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 20 + [3] * 10)[torch.randperm(70, generator=generator)]
    difficulty = torch.rand(70, generator=generator) + 10 * (labels == 3)  # a class that is hard as a whole
    order = order_of(difficulty, labels, hardest_first=False)
    assert sorted(order.tolist()) == list(range(70))
    first = order[:35]
    assert torch.bincount(labels[first], minlength=4).tolist() == [20, 10, 0, 5]
    for label in (0, 1, 3):
        members = order[labels[order] == label]
        assert torch.equal(difficulty[members], difficulty[labels == label].sort().values)
    hardest = order_of(difficulty, labels, hardest_first=True)
    for label in (0, 1, 3):
        assert torch.equal(hardest[labels[hardest] == label], order[labels[order] == label].flip(0))


def test_a_difficulty_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        order_of(torch.tensor([0.0, math.nan]), torch.tensor([0, 1]), hardest_first=False)


def test_batches_come_from_the_pool_and_from_the_seed_and_step_alone():
    one, other, plain = loader(), loader(), loader()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    one.curriculum = other.curriculum = Curriculum(order, "linear", 2 * len(one))
    for step in [20, 3, 0, 12, 25, 3]:
        drawn, pool = one.indices(step), one.curriculum.pool(step)
        assert torch.equal(drawn, other.indices(step))
        assert len(drawn) == len(plain.indices(step))
        assert len(drawn.unique()) == len(drawn)
        if pool is None:
            assert torch.equal(drawn, plain.indices(step))
        else:
            assert set(drawn.tolist()) <= set(pool.tolist())
    assert not torch.equal(one.indices(0), one.indices(1))


def test_a_pool_smaller_than_a_batch_gives_all_it_has():
    small = loader(num_images=10, batch_size=8)
    small.curriculum = Curriculum(torch.arange(10), "exponential", 20)
    assert sorted(small.indices(0).tolist()) == [0, 1]
