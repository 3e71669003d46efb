"""The twin of similarity matching, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, randn, tensor
from tests.reference import similarity as twin


def adjusted_cosine(rows: Tensor) -> Tensor:
    centred = F.normalize(rows - rows.mean(1, keepdim=True), eps=1e-8)
    return centred @ centred.T


def test_similarity_by_hand() -> None:
    # Centred: (-1, 1, 0), (1, -1, 0) doubled, and (0, 1, -1); cosines -1, 1/2 and -1/2.
    rows = tensor([[1, 3, 2], [5, 1, 3], [7, 8, 6]])
    close(twin.similarity_matrix(rows), tensor([[1, -1, 0.5], [-1, 1, -0.5], [0.5, -0.5, 1]]))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_similarity_of_labels(classes: int) -> None:
    y = torch.tensor([0, 1, 0])
    off = -1 / (classes - 1)
    expected = tensor([[1, off, 1], [off, 1, off], [1, off, 1]])
    close(twin.similarity_matrix(twin.onehot(y, classes)), expected)


def test_a_constant_row_is_similar_to_nothing_and_has_finite_gradients() -> None:
    rows = tensor([[2, 2, 2], [1, 0, 3]]).requires_grad_()
    matrix = twin.similarity_matrix(rows)
    close(matrix.detach(), tensor([[0, 0], [0, 1]]))
    [gradient] = torch.autograd.grad(matrix.sum(), rows)
    assert gradient.isfinite().all()


def test_rows_are_standard_deviations_or_flat() -> None:
    h = randn(2, 4, 3, 2)
    close(twin.similarity_rows(h), h.flatten(2).std(2))
    for flat in (randn(2, 3, 3, 2), randn(2, 4, 1, 2), randn(2, 5)):
        close(twin.similarity_rows(flat), flat.flatten(1))


def test_a_dead_map_has_gradient_zero() -> None:
    h = torch.zeros(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(twin.similarity_rows(h).sum(), h)
    close(gradient, torch.zeros_like(gradient))


def test_g() -> None:
    h, weight = randn(2, 4, 3, 2), randn(4, 4, 3, 3, seed=1)
    close(twin.project(h, weight), F.conv2d(h, weight, padding=1))
    h, weight = randn(2, 4), randn(3, 4, seed=1)
    close(twin.project(h, weight), h @ weight.T)


def test_sim_is_zero_where_features_are_labels() -> None:
    y = torch.tensor([0, 2, 1, 2])
    loss = twin.sim_loss(twin.onehot(y, 3), y, 3, torch.eye(3, dtype=torch.float64))
    close(loss, tensor(0.0))


def test_sim_by_hand() -> None:
    # Two samples of two classes: the target is 1 and -1, the features agree, so that two of four errors are 2.
    h = tensor([[0, 1], [0, 2]])
    close(twin.sim_loss(h, torch.tensor([0, 1]), 2, torch.eye(2, dtype=torch.float64)), tensor(2.0))


def test_predsim() -> None:
    h, y = randn(3, 4, 2, 2), torch.tensor([0, 1, 0])
    weight, bias, conv = randn(3, 8, seed=1), randn(3, seed=2), randn(4, 4, 3, 3, seed=3)
    pred = F.cross_entropy(F.linear(F.avg_pool2d(h, (2, 1)).flatten(1), weight, bias), y)
    rows = F.conv2d(h, conv, padding=1).flatten(2).std(2)
    sim = F.mse_loss(adjusted_cosine(rows), adjusted_cosine(F.one_hot(y, 3).double()))
    close(twin.pred_loss(h, y, weight, bias, 8), pred)
    close(twin.sim_loss(h, y, 3, conv), sim)
    close(twin.predsim_loss(h, y, weight, bias, conv, budget=8), 0.01 * pred + 0.99 * sim)
    close(twin.predsim_output_loss(h[:, :3, 0, 0], y), 0.01 * F.cross_entropy(h[:, :3, 0, 0], y))


def test_bce_by_hand() -> None:
    loss = twin.binary_cross_entropy_with_logits(tensor([[0.0, math.log(3)]]), tensor([[1, 0]]))
    close(loss, tensor((math.log(2) + math.log(4)) / 2))
    close(twin.binary_cross_entropy_with_logits(tensor([[1000.0]]), tensor([[0]])), tensor(1000.0))


@pytest.mark.parametrize("budget", [8, 4])  # maps of height 1, which are flattened
def test_bpf_losses(budget: int) -> None:
    h, y, projection = randn(3, 4, 2, 2), torch.tensor([0, 1, 0]), randn(5, 3, seed=1)
    pooled = F.avg_pool2d(h, (2, 1) if budget == 8 else 2)
    close(twin.pooled_map(h, budget), pooled)
    weight, bias, feedback = randn(5, budget, seed=2), randn(5, seed=3), randn(5, budget, seed=4)
    target = projection[:, y].T
    sim = F.mse_loss(adjusted_cosine(pooled.flatten(1)), adjusted_cosine(target))
    pred = F.binary_cross_entropy_with_logits(F.linear(pooled.flatten(1), weight, bias), (target > 0).double())
    close(twin.sim_bpf_loss(h, y, projection, budget=budget), sim)
    arguments = (h, y, projection, weight, bias, feedback)
    close(twin.pred_bpf_loss(*arguments, budget=budget), pred)
    close(twin.predsim_bpf_loss(*arguments, budget=budget), 0.99 * pred + 0.01 * sim)


def test_bpf_rows_are_deviations_of_the_pooled_map() -> None:
    h, y, projection = randn(2, 4, 4, 2), torch.tensor([0, 1]), randn(5, 2, seed=1)
    rows = F.avg_pool2d(h, (2, 1)).flatten(2).std(2)
    expected = F.mse_loss(adjusted_cosine(rows), adjusted_cosine(projection[:, y].T))
    close(twin.sim_bpf_loss(h, y, projection, budget=16), expected)


def test_feedback_alignment_changes_the_gradient_of_the_features_alone() -> None:
    features, feedback = randn(3, 4).requires_grad_(), randn(5, 4, seed=1)
    weight, bias = randn(5, 4, seed=2).requires_grad_(), randn(5, seed=3).requires_grad_()
    error = randn(3, 5, seed=4)
    outputs = twin.feedback_linear(features, weight, bias, feedback)
    close(outputs, F.linear(features, weight, bias))
    gradients = torch.autograd.grad((outputs * error).sum(), [features, weight, bias])
    close(gradients[0], error @ feedback)
    close(gradients[1], error.T @ features)
    close(gradients[2], error.sum(0))
    close(twin.feedback_linear(features, weight, None, feedback), features @ weight.T)
