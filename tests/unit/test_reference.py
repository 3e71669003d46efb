"""The naive twins themselves, against numbers worked out by hand and against torch's own functions."""

from __future__ import annotations

import ast
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, randn, tensor
from tests.reference import augment, contrast, dictionary, optim, prediction

Z = 3


# ---------------------------------------------------------------- independence

REFERENCE = Path(__file__).resolve().parents[1] / "reference"


def library_imports(source: str) -> set[str]:
    """Every module of the library that the source imports, and `import_module`-like calls by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found |= {f"{node.module}.{a.name}" if node.module == "localprop" else node.module for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if node.value.split(".")[0] == "localprop" else set()
    return {name for name in found if name.split(".")[0] == "localprop"}


def test_twins_import_nothing_from_the_library_but_types() -> None:
    files = sorted(REFERENCE.rglob("*.py"))
    assert {file.name for file in files} >= {"dictionary.py", "training.py", "optim.py"}
    offenders = {file.name: library_imports(file.read_text()) - {"localprop.types"} for file in files}
    assert not any(offenders.values()), offenders


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import localprop", {"localprop"}),
        ("import localprop.functional as f", {"localprop.functional"}),
        ("from localprop import functional, types", {"localprop.functional", "localprop.types"}),
        ("def f():\n    from localprop.rules.greedy import Greedy", {"localprop.rules.greedy"}),
        ("import importlib\nimportlib.import_module('localprop.rules')", {"localprop.rules"}),
        ("from .dictionary import bound", set()),
        ("import localproperty", set()),
    ],
)
def test_the_import_check_sees_every_form(source: str, expected: set[str]) -> None:
    assert library_imports(source) == expected


# ---------------------------------------------------------------- pooling and averaging


def test_pool_embedding_takes_the_mean_of_consecutive_groups() -> None:
    close(dictionary.pool_embedding(tensor([1, 2, 3, 5, 10, 20, 30, 40]), 2), tensor([2.75, 25.0]))


def test_pool_embedding_overlaps_where_widths_do_not_divide() -> None:
    # 5 -> 3: windows 0..1, 1..3, 3..4
    close(dictionary.pool_embedding(tensor([1, 2, 3, 4, 10]), 3), tensor([1.5, 3.0, 7.0]))


@pytest.mark.parametrize(("size", "width"), [(12, 12), (12, 4), (12, 5), (7, 3), (11, 10), (9, 1)])
def test_pool_embedding_is_adaptive_average_pooling(size: int, width: int) -> None:
    t = randn(size)
    close(dictionary.pool_embedding(t, width), F.adaptive_avg_pool1d(t[None, None], width)[0, 0])


def test_averages() -> None:
    image, tokens = randn(2, 3, 2, 4), randn(2, 5, 3)
    close(dictionary.average_positions_image(image), image.mean((2, 3)))
    close(dictionary.average_positions_tokens(tokens), tokens.mean(1))


def test_chunks_are_contiguous() -> None:
    close(dictionary.average_chunks(tensor([[1, 2, 3, 10, 20, 30]]), 2), tensor([[5.5, 11.0, 16.5]]))


def test_chunks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks must divide"):
        dictionary.average_chunks(randn(1, 7), 2)


# ---------------------------------------------------------------- dictionary


def test_dictionary_logits_by_hand() -> None:
    h = tensor([[[[1, 3]], [[0, 2]]]])  # averages: 2 and 1
    embeddings = tensor([[1, 3, 0, 2], [0, 0, 4, 0]])  # pooled: (2, 1) and (0, 2)
    close(dictionary.dictionary_logits(h, embeddings), tensor([[5.0, 2.0]]))
    close(dictionary.dictionary_logits(h, embeddings, temperature=0.5), tensor([[10.0, 4.0]]))
    cosines = [[5 / 5, 2 / (math.sqrt(5) * 2)]]
    close(dictionary.dictionary_logits(h, embeddings, similarity="cosine"), tensor(cosines))


def pooled(embeddings: Tensor, width: int) -> Tensor:
    return F.adaptive_avg_pool1d(embeddings[None], width)[0]


@pytest.mark.parametrize("layout", ["image", "tokens", "flat", "chunks"])
@pytest.mark.parametrize("size", [4, 8, 10])
def test_dictionary_loss_is_cross_entropy_of_pooled_features(layout: str, size: int) -> None:
    y = torch.tensor([0, 2, 1])
    embeddings = randn(Z, size, seed=1)
    h, features, chunks = {
        "image": (randn(3, 4, 2, 3), randn(3, 4, 2, 3).mean((2, 3)), 1),
        "tokens": (randn(3, 5, 4), randn(3, 5, 4).mean(1), 1),
        "flat": (randn(3, 4), randn(3, 4), 1),
        "chunks": (randn(3, 8), randn(3, 8).reshape(3, 2, 4).mean(1), 2),
    }[layout]
    expected = F.cross_entropy(features @ pooled(embeddings, 4).T, y)
    loss = dictionary.dictionary_loss(h, embeddings, y, chunks=chunks)
    close(loss, expected)
    close(dictionary.bound(loss, Z), math.log(3) - expected)


def test_cosine_with_temperature() -> None:
    h, embeddings = randn(3, 4, 2, 2), randn(Z, 10, seed=1)
    expected = F.normalize(h.mean((2, 3))) @ F.normalize(pooled(embeddings, 4)).T / 0.07
    actual = dictionary.dictionary_logits(h, embeddings, similarity="cosine", temperature=0.07)
    close(actual, expected)


def test_cosine_of_dead_features_is_zero_with_finite_gradients() -> None:
    h = torch.zeros(2, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    logits = dictionary.dictionary_logits(h, randn(Z, 3), similarity="cosine")
    close(logits.detach(), torch.zeros(2, Z, dtype=torch.float64))
    [gradient] = torch.autograd.grad(logits.sum(), h)
    assert gradient.isfinite().all()


def test_several_embeddings_a_class() -> None:
    h = tensor([[1.0, 2.0]])
    embeddings = tensor([[1, 0], [0, 1], [3, 0], [0, 0]])  # class 0 scores 1 and 2, class 1 scores 3 and 0
    logits = partial(dictionary.dictionary_logits, h, embeddings, embeddings_per_class=2)
    close(logits(reduce="max"), tensor([[2.0, 3.0]]))
    close(logits(reduce="max", temperature=2.0), tensor([[1.0, 1.5]]))
    close(logits(), tensor([[math.log(math.e + math.e**2), math.log(math.e**3 + 1)]]))
    expected = [[math.log(math.e**0.5 + math.e), math.log(math.e**1.5 + 1)]]
    close(logits(temperature=2.0), tensor(expected))


def test_projections() -> None:
    h, embeddings, weight = randn(2, 4, 2, 2), randn(Z, 6, seed=1), randn(4, 6, seed=2)
    features = h.mean((2, 3))
    logits = partial(dictionary.dictionary_logits, h, embeddings)
    close(logits(projection="label", projection_weight=weight), features @ (embeddings @ weight.T).T)
    close(logits(projection="feature", projection_weight=weight.T), features @ weight @ embeddings.T)
    cosine = partial(logits, similarity="cosine")
    close(
        cosine(projection="label", projection_weight=weight),
        F.normalize(features) @ F.normalize(embeddings @ weight.T).T,
    )
    close(
        cosine(projection="feature", projection_weight=weight.T),
        F.normalize(features @ weight) @ F.normalize(embeddings).T,
    )
    with pytest.raises(ValueError, match="projection_weight must be given"):
        logits(projection="label")


def test_cross_entropy_by_hand_and_without_overflow() -> None:
    logits = tensor([[0, math.log(3)], [2, 2]])
    close(dictionary.cross_entropy(logits, torch.tensor([0, 1])), tensor((math.log(4) + math.log(2)) / 2))
    close(dictionary.cross_entropy(tensor([[1000, 0]]), torch.tensor([1])), tensor(1000.0))


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 3, 4), (3, 4)])
@pytest.mark.parametrize("size", [4, 8, 10])
def test_gradients_by_hand_equal_autograd(shape: tuple[int, ...], size: int) -> None:
    h, embeddings = randn(*shape).requires_grad_(), randn(Z, size, seed=1).requires_grad_()
    y = torch.tensor([1, 1, 2])
    expected = torch.autograd.grad(dictionary.dictionary_loss(h, embeddings, y), [h, embeddings])
    for by_hand, automatic in zip(dictionary.dictionary_loss_gradients(h, embeddings, y), expected, strict=True):
        close(by_hand, automatic)


def test_gradients_by_hand_of_chunks() -> None:
    h, embeddings = randn(3, 8).requires_grad_(), randn(Z, 8, seed=1).requires_grad_()
    y = torch.tensor([1, 1, 2])
    loss = F.cross_entropy(h.reshape(3, 2, 4).mean(1) @ pooled(embeddings, 4).T, y)
    h_gradient, embeddings_gradient = dictionary.dictionary_loss_gradients(h, embeddings, y, chunks=2)
    expected = torch.autograd.grad(loss, [h, embeddings])
    close(h_gradient, expected[0])
    close(embeddings_gradient, expected[1])


# ---------------------------------------------------------------- supervised contrast


def test_supervised_contrast_by_hand() -> None:
    # Unit vectors: a0 = a1 = e1, a2 = e2, so that the similarities are 1, 0, 0; temperature 1.
    features, y = tensor([[2, 0], [5, 0], [0, 3]]), torch.tensor([0, 0, 1])
    per_anchor = math.log(math.e + 1) - 1  # anchors 0 and 1; anchor 2 has no positive
    loss = contrast.supervised_contrastive_loss(features, y, temperature=1.0)
    close(loss, tensor(2 * per_anchor / 3))


def test_supervised_contrast_in_matrix_form() -> None:
    features, y = randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    a = F.normalize(features)
    similarity = (a @ a.T / 0.07).fill_diagonal_(-torch.inf)
    positive = (y[:, None] == y[None]) & ~torch.eye(7, dtype=torch.bool)
    log_probability = similarity.log_softmax(1).masked_fill(~positive, 0)
    expected = -(log_probability.sum(1) / positive.sum(1).clamp(min=1)).mean()
    close(contrast.supervised_contrastive_loss(features, y), expected)


def test_supervised_contrast_ignores_the_order_of_samples() -> None:
    features, y, order = randn(6, 3), torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([4, 2, 5, 0, 1, 3])
    close(
        contrast.supervised_contrastive_loss(features[order], y[order]),
        contrast.supervised_contrastive_loss(features, y),
    )


@pytest.mark.parametrize("samples", [1, 3])
def test_supervised_contrast_without_positives_is_zero(samples: int) -> None:
    loss = contrast.supervised_contrastive_loss(randn(samples, 4), torch.arange(samples))
    close(loss, tensor(0.0))


# ---------------------------------------------------------------- prediction


@pytest.mark.parametrize(
    ("channels", "side", "expected"),
    [
        (128, 32, (8, 8)),
        (256, 32, (16, 8)),
        (256, 16, (8, 4)),
        (512, 16, (8, 8)),
        (512, 8, (4, 4)),
        (512, 4, (2, 2)),
    ],
)
def test_pool_kernel_of_vgg8b_on_32_pixels(channels: int, side: int, expected: tuple[int, int]) -> None:
    assert prediction.pool_kernel(channels, side, side, 2048) == expected


def pooled_size(channels: int, side: int, budget: int) -> int:
    kh, kw = prediction.pool_kernel(channels, side, side, budget)
    return channels * math.ceil(side / kh) * math.ceil(side / kw)


def test_pool_kernel_gives_the_published_parameter_counts() -> None:
    def parameters(maps: list[tuple[int, int]], budget: int) -> int:
        return sum(pooled_size(*item, budget) * 10 + 10 for item in maps) + 1024 * 10 + 10

    channels = [128, 256, 256, 512, 512, 512]
    mnist = list(zip(channels, [28, 28, 14, 14, 7, 3], strict=True))
    stl10 = list(zip(channels, [48, 48, 24, 24, 12, 6], strict=True))
    assert parameters(mnist, 1024) == 71_750  # published as 71.8K
    assert parameters(stl10, 2048) == 113_990  # published as 114K


def test_pool_kernel_stays_within_the_map() -> None:
    assert prediction.pool_kernel(10, 3, 5, 10) == (3, 5)
    assert prediction.pool_kernel(10, 3, 5, 1) == (3, 5)
    assert prediction.pool_kernel(10, 1, 8, 20) == (1, 4)
    assert prediction.pool_kernel(4, 2, 2, 16) == (1, 1)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 3, 5)])
@pytest.mark.parametrize("budget", [6, 12, 100])
def test_pred_logits_pool_flatten_and_project(shape: tuple[int, ...], budget: int) -> None:
    h = randn(*shape)
    kernel = prediction.pool_kernel(*shape[1:], budget)
    features = F.avg_pool2d(h, kernel, ceil_mode=True).flatten(1)
    weight, bias = randn(Z, features.shape[1], seed=1), randn(Z, seed=2)
    close(prediction.pred_logits(h, weight, bias, budget), F.linear(features, weight, bias))


def test_pred_logits_of_a_flat_output() -> None:
    h, weight, bias = randn(2, 5), randn(Z, 5, seed=1), randn(Z, seed=2)
    close(prediction.pred_logits(h, weight, bias, budget=1), F.linear(h, weight, bias))


# ---------------------------------------------------------------- optimiser and schedules


def test_adamw_first_step_by_hand() -> None:
    # Once unbiased, m = g and sqrt(v) = |g|: a step of lr, beside the decay lr * weight decay * value.
    values, first, second = optim.adamw_step([2.0], [-4.0], [0.0], [0.0], 1, lr=0.1, eps=0.0, weight_decay=0.5)
    assert values == pytest.approx([2.0 - 0.1 + 0.1], rel=1e-12)
    assert first == pytest.approx([-0.4])
    assert second == pytest.approx([0.016])


def test_adamw_follows_torch() -> None:
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    parameter = randn(5).requires_grad_()
    optimizer = torch.optim.AdamW([parameter], **settings)
    values, first, second = parameter.tolist(), [0.0] * 5, [0.0] * 5
    for number in range(1, 6):
        parameter.grad = randn(5, seed=number)
        optimizer.step()
        gradients = parameter.grad.tolist()
        values, first, second = optim.adamw_step(values, gradients, first, second, number, **settings)
        close(parameter.detach(), tensor(values))


def test_multistep() -> None:
    schedule = partial(optim.multistep, milestones=(0.5, 0.75), gamma=0.25)
    assert [schedule(p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [1.0, 1.0, 0.25, 0.25, 0.0625, 0.0625]


def test_cosine() -> None:
    assert [optim.cosine(p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([1.0, 0.75, 0.5, 0.0])
    warm = partial(optim.cosine, warmup=0.2, final=0.1)
    assert [warm(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])


def test_linear() -> None:
    assert [optim.linear(p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


# ---------------------------------------------------------------- augmentation


def test_crop_and_flip_by_hand() -> None:
    image = tensor([[[1, 2], [3, 4]]])
    close(augment.crop(image, 1, 1, padding=1), image)
    close(augment.crop(image, 0, 2, padding=1, fill=9), tensor([[[9, 9], [2, 9]]]))
    close(augment.flip(image), tensor([[[2, 1], [4, 3]]]))
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        augment.crop(image, 3, 0, padding=1)


def test_crop_and_flip_treats_every_sample_by_itself() -> None:
    images = torch.arange(3 * 2 * 4 * 4, dtype=torch.uint8).reshape(3, 2, 4, 4)
    offsets, flips = [(0, 3), (4, 1), (2, 2)], [True, False, True]
    padded = F.pad(images, (2, 2, 2, 2))
    expected = [padded[n, :, i : i + 4, j : j + 4] for n, (i, j) in enumerate(offsets)]
    expected = [e.flip(-1) if flipped else e for e, flipped in zip(expected, flips, strict=True)]
    actual = augment.crop_and_flip(images, offsets, flips, padding=2)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, torch.stack(expected))
