"""What holds of every input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from localprop.functional.contrast import supervised_contrastive_loss
from localprop.functional.dictionary import combine_embeddings, pool_embeddings
from localprop.functional.pooling import budget_kernel
from localprop.infer.ensemble import WEIGHTS, ensemble_probabilities, ensemble_weights
from localprop.objectives import DictionaryContrast, LabelDictionary
from localprop.seed import derive
from localprop.train import schedule
from localprop.types import BlockSpec, LocalBatch

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
fractions = st.floats(0, 1, exclude_max=True)
milestones = st.lists(st.floats(0.001, 0.999), max_size=5, unique=True).map(sorted)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_pooling_preserves_row_means_when_widths_divide(seed: int, rows: int, width: int, factor: int):
    embeddings = randn(seed, rows, width * factor)
    torch.testing.assert_close(pool_embeddings(embeddings, width).mean(1), embeddings.mean(1), **CLOSE)
    repeated = pool_embeddings(embeddings, width * factor * 2)
    torch.testing.assert_close(repeated, embeddings.repeat_interleave(2, 1), **CLOSE)


@few
@given(seeds, st.integers(1, 20), st.integers(1, 20))
def test_pooled_embeddings_stay_within_their_range(seed: int, size: int, width: int):
    embeddings = randn(seed, 2, size)
    pooled = pool_embeddings(embeddings, width)
    assert pooled.shape == (2, width)
    assert bool((pooled <= embeddings.amax(1, keepdim=True) + 1e-12).all())
    assert bool((pooled >= embeddings.amin(1, keepdim=True) - 1e-12).all())


def objective_for(seed: int, per_class: int = 1, similarity: str = "dot") -> DictionaryContrast:
    spec = BlockSpec(0, 2, "block", (4, 2, 2), (4, 2, 2), 0, 1, 3, (4, 2, 2))
    dictionary = LabelDictionary(3, 7, embeddings_per_class=per_class)
    with torch.no_grad():
        dictionary.embeddings.copy_(randn(seed, 3 * per_class, 7))
    return DictionaryContrast(spec, dictionary, similarity=similarity).double()


def loss_of(objective: DictionaryContrast, h: Tensor, y: Tensor) -> Tensor:
    return objective(h, LocalBatch(y, h)).loss


labels = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@few
@given(seeds, labels, st.sampled_from(["dot", "cosine"]), st.randoms(use_true_random=False))
def test_the_loss_does_not_depend_on_the_order_of_the_batch(seed: int, y: list[int], similarity: str, random):
    objective, h, target = objective_for(seed, similarity=similarity), randn(seed + 1, len(y), 4, 2, 2), torch.tensor(y)
    order = torch.tensor(random.sample(range(len(y)), len(y)))
    expected = loss_of(objective, h, target)
    torch.testing.assert_close(loss_of(objective, h[order], target[order]), expected, **CLOSE)
    features = h.mean((2, 3))
    torch.testing.assert_close(
        supervised_contrastive_loss(features[order], target[order]), supervised_contrastive_loss(features, target)
    )


@few
@given(seeds, labels, st.permutations([0, 1, 2]), st.integers(1, 3))
def test_renaming_the_classes_changes_nothing(seed: int, y: list[int], names: list[int], per_class: int):
    objective, h, target = objective_for(seed, per_class), randn(seed + 1, len(y), 4, 2, 2), torch.tensor(y)
    renamed = objective_for(seed, per_class)
    by_class = objective.dictionary.embeddings.detach().reshape(3, per_class, -1)
    new = torch.empty_like(by_class)
    new[names] = by_class
    with torch.no_grad():
        renamed.dictionary.embeddings.copy_(new.flatten(0, 1))
    new_target = torch.tensor(names)[target]
    torch.testing.assert_close(loss_of(renamed, h, new_target), loss_of(objective, h, target), **CLOSE)
    torch.testing.assert_close(renamed.logits(h)[:, names], objective.logits(h), **CLOSE)


@few
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 100))
def test_the_log_sum_exp_of_several_embeddings_is_at_least_their_maximum(
    seed: int, classes: int, per_class: int, size: float
):
    scores = size * randn(seed, 3, classes * per_class)
    soft = combine_embeddings(scores, per_class, "logsumexp")
    hard = combine_embeddings(scores, per_class, "max")
    assert soft.shape == hard.shape == (3, classes)
    assert bool((soft >= hard).all())
    assert bool((soft <= hard + torch.tensor(float(per_class)).log() + 1e-9).all())


@few
@given(seeds, st.lists(st.booleans(), min_size=1, max_size=9).filter(any), st.sampled_from(WEIGHTS))
def test_ensemble_probabilities_sum_to_one(seed: int, predicts: list[bool], kind: str):
    exits = [10 * randn(seed + i, 4, 3) if predicted else None for i, predicted in enumerate(predicts)]
    probabilities = ensemble_probabilities(exits, ensemble_weights(len(exits), kind))
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4, dtype=torch.float64), **CLOSE)


@few
@given(st.integers(1, 300), st.sampled_from(WEIGHTS))
def test_ensemble_weights_sum_to_one_and_never_fall(num_blocks: int, kind: str):
    weights = ensemble_weights(num_blocks, kind)
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights)


@few
@given(fractions, milestones, st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0, 1))
def test_schedules_stay_between_nought_and_one(
    progress: float, points: list[float], gamma: float, warmup: float, final: float
):
    made = [
        schedule.constant(),
        schedule.multistep(milestones=points, gamma=gamma),
        schedule.cosine(warmup=warmup, final=final),
        schedule.linear(warmup=warmup, final=final),
    ]
    assert len(made) == len(schedule.CATALOGUE)
    for factor in made:
        assert 0 <= factor(progress) <= 1


@few
@given(fractions, fractions, milestones, st.floats(0.01, 1))
def test_multistep_never_rises(a: float, b: float, points: list[float], gamma: float):
    factor = schedule.multistep(milestones=points, gamma=gamma)
    assert factor(min(a, b)) >= factor(max(a, b))


@few
@given(fractions, fractions, st.floats(0, 1))
def test_without_a_warmup_every_schedule_falls(a: float, b: float, final: float):
    for factor in (schedule.cosine(final=final), schedule.linear(final=final)):
        assert factor(min(a, b)) >= factor(max(a, b)) - 1e-12
        assert factor(0.0) == pytest.approx(1)


@few
@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4096))
def test_the_pooling_kernel_keeps_the_budget_or_covers_the_map(channels: int, height: int, width: int, budget: int):
    kh, kw = budget_kernel(channels, height, width, budget)
    assert 1 <= kh <= height
    assert 1 <= kw <= width
    assert channels * -(-height // kh) * -(-width // kw) <= budget or (kh, kw) == (height, width)


@few
@given(st.integers(0, 2**63), st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_derived_seeds_are_seeds_that_torch_takes(seed: int, path: list[int | str]):
    derived = derive(seed, *path)
    assert 0 <= derived < 2**63
    assert derived == derive(seed, *path)
    assert derived != derive(seed + 1, *path)
    assert derived != derive(seed, *path, 0)
