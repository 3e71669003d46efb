"""Every pure function, against its twin in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from localprop.functional.contrast import supervised_contrastive_loss
from localprop.functional.dictionary import information_bound, orthogonal_embeddings, pool_embeddings
from localprop.functional.pooling import (
    average_chunks,
    average_positions,
    average_windows,
    budget_kernel,
    pool_to_budget,
)
from localprop.infer.ensemble import ensemble_probabilities, ensemble_weights
from localprop.objectives import DictionaryContrast, FeatureContrast, LabelDictionary
from localprop.train import schedule
from localprop.types import BlockSpec, LocalBatch
from tests.by_hand import randn
from tests.reference import contrast, optim, prediction
from tests.reference import dictionary as twin

EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLASSES = 3
SHAPES = {"image": (4, 3, 2), "tokens": (5, 4), "flat": (12,)}
"""One sample of every kind of output; the flat one is averaged over 3 chunks, so that all have C = 4."""


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def spec_of(kind: str) -> BlockSpec:
    shape = SHAPES[kind]
    axis, chunks = -1 if kind == "tokens" else 0, 3 if kind == "flat" else 1
    return BlockSpec(0, 2, "block", shape, shape, axis, chunks, CLASSES, shape)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 11, 12])
def test_pool_embeddings(width: int):
    embeddings = randn(2, 7)
    expected = torch.stack([twin.pool_embedding(row, width) for row in embeddings])
    close(pool_embeddings(embeddings, width), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_average_positions_of_images(layout: torch.memory_format):
    h = randn(2, 3, 4, 2).contiguous(memory_format=layout).requires_grad_()
    close(average_positions(h), twin.average_positions_image(h))
    assert torch.autograd.gradcheck(average_positions, (h,))
    (gradient,) = torch.autograd.grad((average_positions(h) * randn(2, 3, seed=1)).sum(), h)
    (expected,) = torch.autograd.grad((twin.average_positions_image(h) * randn(2, 3, seed=1)).sum(), h)
    close(gradient, expected)
    assert gradient.stride() == h.stride()


def test_average_positions_of_tokens():
    h = randn(2, 3, 4).requires_grad_()
    close(average_positions(h, -1), twin.average_positions_tokens(h))
    assert torch.autograd.gradcheck(lambda h: average_positions(h, -1), (h,))
    (gradient,) = torch.autograd.grad(average_positions(h, -1).sum(), h)
    assert gradient.stride() == h.stride()


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 12])
def test_average_chunks(chunks: int):
    h = randn(2, 12).requires_grad_()
    close(average_chunks(h, chunks), twin.average_chunks(h, chunks))
    assert torch.autograd.gradcheck(lambda h: average_chunks(h, chunks), (h,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(3, 5, 4, 6), (7, 32, 64, 64)])  # the second is averaged in pieces
def test_half_precision_is_averaged_in_pieces(size: tuple[int, ...], layout: torch.memory_format):
    h = torch.randn(size, dtype=torch.bfloat16).to(memory_format=layout).requires_grad_()
    averaged = average_positions(h)
    assert averaged.dtype == torch.float32
    torch.testing.assert_close(averaged.double(), h.double().mean((2, 3)), rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(averaged)
    (gradient,) = torch.autograd.grad((averaged * weights).sum(), h)
    expected = (weights / (size[2] * size[3])).to(torch.bfloat16)[:, :, None, None].expand(size)
    assert gradient.stride() == h.stride()
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_single(dtype: torch.dtype):
    h = (100 + randn(2, 3, 4, 4)).to(dtype).requires_grad_()
    averaged = average_positions(h)
    assert averaged.dtype == torch.float32
    torch.testing.assert_close(averaged.double(), h.double().mean((2, 3)), rtol=1e-6, atol=0)
    averaged.sum().backward()
    assert h.grad.dtype == dtype


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize(("per_class", "reduction"), [(1, "logsumexp"), (3, "logsumexp"), (3, "max")])
@pytest.mark.parametrize("projection", ["pool", "label", "feature"])
def test_dictionary_logits_and_gradients(
    kind: str, similarity: str, temperature: float, per_class: int, reduction: str, projection: str
):
    h, y = randn(3, *SHAPES[kind], seed=3).requires_grad_(), torch.tensor([0, 2, 1])
    dictionary = LabelDictionary(CLASSES, 6, embeddings_per_class=per_class)
    objective = DictionaryContrast(
        spec_of(kind),
        dictionary,
        similarity=similarity,
        temperature=temperature,
        reduction=reduction,
        projection=projection,
    ).double()
    embeddings = dictionary.embeddings
    layer = objective.label_projection or objective.feature_projection
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(randn(*parameter.shape, seed=4))
    weights = [] if layer is None else [layer.weight]
    settings = {
        "embeddings_per_class": per_class,
        "reduce": reduction,
        "similarity": similarity,
        "temperature": temperature,
        "projection": projection,
        "projection_weight": layer.weight if layer is not None else None,
        "chunks": spec_of(kind).chunks,
    }
    close(objective.logits(h), twin.dictionary_logits(h, embeddings, **settings))
    local = objective(h, LocalBatch(y, h))
    loss = twin.dictionary_loss(h, embeddings, y, **settings)
    close(local.loss, loss)
    inputs = [h, embeddings, *weights]
    close(torch.autograd.grad(local.loss, inputs), torch.autograd.grad(loss, inputs))


def test_the_gradients_of_the_plain_loss_are_those_worked_out_by_hand():
    h, y = randn(3, *SHAPES["image"]).requires_grad_(), torch.tensor([0, 2, 2])
    objective = DictionaryContrast(spec_of("image"), LabelDictionary(CLASSES, 7)).double()
    loss = objective(h, LocalBatch(y, h)).loss
    embeddings = objective.dictionary.embeddings
    expected = twin.dictionary_loss_gradients(h.detach(), embeddings.detach(), y)
    close(torch.autograd.grad(loss, [h, embeddings]), expected)


def test_a_block_that_does_not_learn_the_dictionary_gives_it_no_gradient():
    h, y = randn(3, *SHAPES["image"]).requires_grad_(), torch.tensor([0, 2, 2])
    objective = DictionaryContrast(spec_of("image"), LabelDictionary(CLASSES, 7), learns_dictionary=False).double()
    objective(h, LocalBatch(y, h)).loss.backward()
    assert objective.dictionary.embeddings.grad is None
    assert h.grad is not None
    assert objective.updated_parameters() == []


@pytest.mark.parametrize("y", [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [2, 0, 2, 1, 2]])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrastive_loss(y: list[int], temperature: float):
    features, target = randn(5, 4).requires_grad_(), torch.tensor(y)
    loss = supervised_contrastive_loss(features, target, temperature)
    expected = contrast.supervised_contrastive_loss(features, target, temperature)
    close(loss, expected)
    if expected.requires_grad:
        close(torch.autograd.grad(loss, features), torch.autograd.grad(expected, features))


def test_anchors_without_a_positive_contribute_nothing():
    features = randn(4, 3).requires_grad_()
    loss = supervised_contrastive_loss(features, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_a_batch_of_one_has_no_contrast():
    features = randn(1, 3).requires_grad_()
    loss = supervised_contrastive_loss(features, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_the_contrast_does_not_depend_on_the_order_of_the_batch():
    features, y, order = randn(6, 4), torch.tensor([0, 1, 0, 2, 1, 1]), torch.tensor([3, 5, 0, 2, 4, 1])
    close(supervised_contrastive_loss(features[order], y[order]), supervised_contrastive_loss(features, y))


@pytest.mark.parametrize("kind", SHAPES)
def test_feature_contrast_averages_before_it_contrasts(kind: str):
    h, y = randn(4, *SHAPES[kind]), torch.tensor([0, 1, 0, 1])
    local = FeatureContrast(spec_of(kind), temperature=0.5)(h, LocalBatch(y, h))
    averaged = twin.average_positions(h, spec_of(kind).chunks)
    close(local.loss, contrast.supervised_contrastive_loss(averaged, y, 0.5))
    assert local.logits is None


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 4), (3, 5, 7), (8, 3, 2), (2, 1, 9), (512, 2, 2), (128, 28, 28)])
@pytest.mark.parametrize("budget", [1, 10, 64, 2048])
def test_budget_kernel(size: tuple[int, int, int], budget: int):
    assert budget_kernel(*size, budget) == prediction.pool_kernel(*size, budget)


@pytest.mark.parametrize("budget", [1, 6, 13, 40, 2048])
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3), (12,)])
def test_pool_to_budget(shape: tuple[int, ...], budget: int):
    h = randn(2, *shape).requires_grad_()
    features, expected = pool_to_budget(h, budget), prediction.pooled_features(h, budget)
    close(features, expected)
    weights = randn(*features.shape, seed=1)
    (gradient,) = torch.autograd.grad((features * weights).sum(), h)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), h)
    close(gradient, expected_gradient)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [(2, 2), (2, 1), (4, 6), (3, 2)])  # the last one overhangs
def test_average_windows_and_their_gradient(layout: torch.memory_format, kernel: tuple[int, int]):
    h = randn(2, 3, 4, 6).contiguous(memory_format=layout).requires_grad_()
    averaged = average_windows(h, kernel)
    close(averaged, torch.nn.functional.avg_pool2d(h, kernel, ceil_mode=True))
    tiles = kernel != (3, 2)
    assert torch.autograd.gradcheck(lambda h: average_windows(h, kernel), (h,), check_forward_ad=tiles)
    assert torch.autograd.gradgradcheck(lambda h: average_windows(h, kernel), (h,), fast_mode=True)
    (gradient,) = torch.autograd.grad(averaged.flatten(1).square().sum(), h)
    assert gradient.stride() == h.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_relu_is_given_the_average_s_gradient_as_it_is_and_lays_it_out(layout: torch.memory_format):
    x = randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    h = x.relu()
    given = []
    h.register_hook(given.append)
    (gradient,) = torch.autograd.grad(average_positions(h).square().sum(), x)
    assert given[0].stride()[2:] == (0, 0)
    (expected,) = torch.autograd.grad(x.relu().mean((2, 3)).square().sum(), x)
    close(gradient, expected)
    assert gradient.stride() == x.stride()
    (gradient,) = torch.autograd.grad(average_positions(x.sigmoid()).sum(), x)
    assert gradient.stride() == x.stride()


def test_pool_to_budget_averages_tokens_that_are_over_the_budget():
    h = randn(2, 3, 4)
    close(pool_to_budget(h, 12), h.flatten(1))
    close(pool_to_budget(h, 11), twin.average_positions_tokens(h))


@pytest.mark.parametrize("classes", [2, 10])
def test_information_bound(classes: int):
    loss = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
    bound = information_bound(loss, classes)
    close(bound, twin.bound(loss.detach(), classes))
    assert not bound.requires_grad


@pytest.mark.parametrize("norm", [1.0, 4.06])
def test_orthogonal_embeddings(norm: float):
    embeddings = orthogonal_embeddings(5, 8, norm).double()
    torch.testing.assert_close(
        embeddings @ embeddings.T, norm**2 * torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uniform", [1 / 4] * 4),
        ("linear", [1 / 10, 2 / 10, 3 / 10, 4 / 10]),
        ("exponential", [2 / 30, 4 / 30, 8 / 30, 16 / 30]),
    ],
)
def test_ensemble_weights(kind: str, expected: list[float]):
    assert ensemble_weights(4, kind) == pytest.approx(expected, rel=1e-9)


def test_exponential_weights_of_very_deep_networks_are_finite():
    weights = ensemble_weights(2000, "exponential")
    assert math.isclose(sum(weights), 1.0)
    assert weights[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["uniform", "linear", "exponential"])
def test_ensemble_probabilities_leave_out_blocks_without_a_prediction(kind: str):
    exits = [randn(2, 3, seed=1), None, randn(2, 3, seed=2)]
    raw = {"uniform": [1, 1, 1], "linear": [1, 2, 3], "exponential": [2, 4, 8]}[kind]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for n, z in itertools.product(range(2), range(3)):
        for weight, logits in zip(raw, exits, strict=True):
            if logits is not None:
                own = [math.exp(value) for value in logits[n].tolist()]
                expected[n, z] += weight / (raw[0] + raw[2]) * own[z] / sum(own)
    close(ensemble_probabilities(exits, ensemble_weights(3, kind)), expected)


PROGRESS = [0.0, 0.049, 0.05, 0.2, 0.25, 0.3, 0.5, 0.75, 0.8, 0.999]


@pytest.mark.parametrize("progress", PROGRESS)
def test_schedules(progress: float):
    milestones, gamma = (0.25, 0.5, 0.75), 0.3
    found = schedule.multistep(milestones=milestones, gamma=gamma)(progress)
    assert found == pytest.approx(optim.multistep(progress, milestones, gamma), rel=1e-9)
    assert schedule.constant()(progress) == 1
    assert schedule.linear()(progress) == pytest.approx(optim.linear(progress), rel=1e-9)
    for warmup, final in itertools.product((0.0, 0.05, 0.3), (0.0, 0.1)):
        found = schedule.cosine(warmup=warmup, final=final)(progress)
        assert found == pytest.approx(optim.cosine(progress, warmup, final), rel=1e-9)


def test_linear_schedule_with_warmup_and_a_final_rate():
    found = schedule.linear(warmup=0.2, final=0.5)
    assert [found(p) for p in (0.0, 0.1, 0.2, 0.6)] == pytest.approx([0.0, 0.5, 1.0, 0.75], rel=1e-9)


def test_adamw_is_the_published_one():
    """Methods are trained by AdamW with decoupled weight decay; a torch release that changed it would change them."""
    parameter = nn.Parameter(torch.tensor([0.5, -2.0], dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    values, first, second = parameter.tolist(), [0.0, 0.0], [0.0, 0.0]
    for step in (1, 2, 3):
        gradient = [0.3 * step, -0.1]
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        values, first, second = optim.adamw_step(values, gradient, first, second, step, lr=0.1)
    assert parameter.tolist() == pytest.approx(values, rel=1e-9)
