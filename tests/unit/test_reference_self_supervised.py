"""The twins of contrast without labels, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, randn, tensor
from tests.reference import self_supervised as twin
from tests.reference.layers import LinearLayer


def test_nt_xent_by_hand() -> None:
    # Both views of sample 0 point along e1, those of sample 1 along e2: one score of 1 against two of 0.
    views = tensor([[2, 0], [0, 3]])
    close(twin.nt_xent(views, views, temperature=1.0), tensor(math.log(math.e + 2) - 1))
    close(twin.nt_xent(views, views, temperature=0.5), tensor(math.log(math.e**2 + 2) - 2))
    close(twin.nt_xent(views[:1], views[:1]), tensor(0.0))


def test_nt_xent_in_matrix_form() -> None:
    first, second = randn(4, 3), randn(4, 3, seed=1)
    a = F.normalize(torch.cat([first, second]))
    logits = (a @ a.T / 0.1).fill_diagonal_(-torch.inf)
    close(twin.nt_xent(first, second, 0.1), F.cross_entropy(logits, torch.arange(8).roll(4)))


def test_projection_head() -> None:
    h, w1, b1, w2 = randn(2, 3, 2, 2), randn(4, 3, seed=1), randn(4, seed=2), randn(5, 4, seed=3)
    layers = [LinearLayer(w1, b1, relu=True), LinearLayer(w2)]
    close(twin.projection_head(h, layers), F.linear(h.mean((2, 3)), w1, b1).relu() @ w2.T)
    close(twin.projection_head(h[:, :, 0, 0], layers), F.linear(h[:, :, 0, 0], w1, b1).relu() @ w2.T)


def test_patches_overlap_by_half() -> None:
    image = randn(2, 3, 8, 8)
    patches = twin.image_patches(image, size=4, stride=2)
    assert patches.shape == (2, 3, 3, 3, 4, 4)
    close(patches[1, 2, 1], image[1, :, 4:8, 2:6])
    assert twin.image_patches(torch.zeros(1, 1, 64, 64), 16, 8).shape[1:3] == (7, 7)


def test_row_prediction_by_hand() -> None:
    # One column, two rows, two channels. The context (1, 2) is turned into (2, 1) by W.
    z = tensor([[1, 3], [2, 5]]).reshape(1, 2, 2, 1)
    weight = tensor([[0, 1], [1, 0]])
    negatives = torch.tensor([[0, 0, 0], [0, 1, 0]]).reshape(1, 1, 1, 2, 3)
    # The patch below (3, 5) scores 11, the negative (1, 2) scores 4, and the patch itself may be drawn again.
    loss = twin.row_prediction_loss(z, z, weight, 1, negatives)
    close(loss, tensor(math.log(2 + math.exp(-7))))


def test_w_acts_on_the_context() -> None:
    z, c, weight = randn(1, 2, 2, 1), randn(1, 2, 2, 1, seed=1), randn(2, 2, seed=2)
    negatives = torch.tensor([0, 0, 0]).reshape(1, 1, 1, 1, 3)
    below, above = z[0, :, 1, 0], z[0, :, 0, 0]
    scores = torch.stack([below @ weight @ c[0, :, 0, 0], above @ weight @ c[0, :, 0, 0]])
    close(twin.row_prediction_loss(z, c, weight, 1, negatives), -scores.log_softmax(0)[0])


@pytest.mark.parametrize("skip", [0, 1])
def test_patch_prediction(skip: int) -> None:
    z, c = randn(2, 3, 4, 2), randn(2, 3, 4, 2, seed=1)
    weights = [randn(3, 3, seed=2 + k) for k in range(2)]
    generator = torch.Generator().manual_seed(3)
    negatives, losses = [], []
    for k in range(2):
        rows = 4 - (k + 1 + skip)
        places = torch.stack(
            [torch.randint(high, (2, rows, 2, 5), generator=generator) for high in (2, 4, 2)],
            dim=-1,
        )
        negatives.append(places)
        prediction = torch.einsum("de,netj->ndtj", weights[k], c[:, :, :rows])
        positive = (z[:, :, k + 1 + skip :] * prediction).sum(1)
        drawn = z[places[..., 0], :, places[..., 1], places[..., 2]]
        negative = torch.einsum("ntjmd,ndtj->ntjm", drawn, prediction)
        logits = torch.cat([positive[..., None], negative], dim=-1).reshape(-1, 6)
        losses.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64)))
    close(twin.patch_prediction_loss(z, c, weights, negatives, skip), torch.stack(losses).mean())
