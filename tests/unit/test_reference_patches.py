"""The twin of the patch dictionary, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, randn, tensor
from tests.reference import patches as twin

IMAGES = randn(2, 2, 4, 5)
PATCHES = twin.choose_patches(IMAGES, 2, [(0, 0, 0), (0, 2, 3), (1, 1, 1), (1, 0, 2), (0, 1, 2), (1, 2, 0)])
MEAN, SIGMA = twin.mean_and_covariance(twin.extract_patches(IMAGES, 2).reshape(-1, 8))
WHITENING = twin.whitening_matrix(SIGMA)


def test_patches() -> None:
    windows = F.unfold(IMAGES, 2).transpose(1, 2).reshape(2, 3, 4, 8)
    close(twin.extract_patches(IMAGES, 2), windows)
    close(PATCHES[1], IMAGES[0, :, 2:4, 3:5].reshape(8))
    assert twin.extract_patches(IMAGES, 2, stride=2).shape == (2, 2, 2, 8)


def test_covariance_by_hand() -> None:
    mean, sigma = twin.mean_and_covariance(tensor([[1, 0], [3, 4]]))
    assert (mean, sigma) == ([2.0, 2.0], [[1.0, 2.0], [2.0, 4.0]])


def test_whitening_by_hand() -> None:
    # With lambda = 5 the eigenvalues 4 and 0 become 9 and 5.
    w = tensor(twin.whitening_matrix([[2.0, 2.0], [2.0, 2.0]], 5.0))
    a, b = 1 / 3, 1 / 5**0.5
    close(w, tensor([[(a + b) / 2, (a - b) / 2], [(a - b) / 2, (a + b) / 2]]))


def test_whitening_is_the_inverse_square_root() -> None:
    w, sigma = tensor(WHITENING), tensor(SIGMA)
    close(w, w.T)
    close(w @ (sigma + 1e-3 * torch.eye(8).double()) @ w, torch.eye(8).double())
    values, vectors = torch.linalg.eigh(sigma)
    close(w, vectors @ torch.diag((values + 1e-3).rsqrt()) @ vectors.T)


def test_whitened_patches_have_unit_covariance() -> None:
    whitened = twin.whiten(twin.extract_patches(IMAGES, 2).reshape(-1, 8), MEAN, twin.whitening_matrix(SIGMA, 0.0))
    mean, sigma = twin.mean_and_covariance(whitened)
    close(tensor(mean), torch.zeros(8).double())
    close(tensor(sigma), torch.eye(8).double())


def test_distances_by_hand() -> None:
    close(twin.squared_distances(tensor([[0, 0], [1, 2]]), tensor([[3, 4], [1, 2]])), tensor([[25, 5], [8, 0]]))


def test_convolution_form_ranks_as_the_distances() -> None:
    windows = twin.extract_patches(IMAGES, 2).reshape(-1, 8)
    scores = twin.convolution_scores(windows, PATCHES, MEAN, WHITENING)
    whitened = twin.whiten(windows, MEAN, WHITENING)
    distances = twin.squared_distances(whitened, twin.whiten(PATCHES, MEAN, WHITENING))
    close(2 * scores + whitened.square().sum(1, keepdim=True), distances)
    for q in (1, 2, 5):
        close(twin.nearest_indicator(scores, q), twin.nearest_indicator(distances, q))
    kernel = whitened @ twin.whiten(PATCHES, MEAN, WHITENING).T
    wrong = -kernel + 2 * (scores + kernel)  # without the half
    assert not torch.equal(wrong.argsort(1), distances.argsort(1))


def test_indicator_by_hand() -> None:
    scores = tensor([[3, 1, 2, 5], [1, 1, 1, 0]])
    close(twin.nearest_indicator(scores, 2), tensor([[0, 1, 1, 0], [0, 0, 0, 1]]))
    close(twin.nearest_indicator(scores, 4), torch.ones(2, 4).double())


@pytest.mark.parametrize("negated", [False, True])
def test_encode(negated: bool) -> None:
    code = twin.encode(IMAGES, PATCHES, MEAN, WHITENING, 2, 2, negated=negated)
    assert code.shape == (2, 6, 3, 4)
    close(code.sum(1), torch.full((2, 3, 4), 2.0).double())
    window = tensor(WHITENING) @ (IMAGES[1, :, 1:3, 2:4].reshape(8) - tensor(MEAN))
    dictionary = (PATCHES - tensor(MEAN)) @ tensor(WHITENING) * (-1 if negated else 1)
    nearest = (dictionary - window).square().sum(1).argsort()[:2]
    assert set(code[1, :, 1, 2].nonzero().flatten().tolist()) == set(nearest.tolist())


def test_a_dictionary_patch_is_nearest_to_itself() -> None:
    code = twin.encode(IMAGES, PATCHES, MEAN, WHITENING, 2, 1)
    assert code[0, 1, 2, 3] == 1
    assert code[1, 2, 1, 1] == 1


@pytest.mark.parametrize(("size", "kernel", "stride"), [(9, 5, 3), (8, 5, 3), (6, 3, 2), (4, 2, 2), (5, 2, 4)])
def test_average_pool(size: int, kernel: int, stride: int) -> None:
    h = randn(1, 2, size, size + 1)
    close(twin.average_pool(h, kernel, stride), F.avg_pool2d(h, kernel, stride, ceil_mode=True))


def test_pooling_of_the_published_sizes() -> None:
    assert twin.average_pool(torch.zeros(1, 1, 27, 27), 5, 3).shape == (1, 1, 9, 9)


def test_adaptive_average_pool() -> None:
    h = randn(1, 2, 9, 7)
    close(twin.adaptive_average_pool(h, 6), F.adaptive_avg_pool2d(h, 6))
