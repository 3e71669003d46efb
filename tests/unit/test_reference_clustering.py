"""The twin of layer-wise clustering, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, randn, tensor
from tests.reference import clustering as twin


def test_positions() -> None:
    h = randn(2, 3, 2, 2)
    close(twin.positions(h), h.permute(0, 2, 3, 1).reshape(8, 3))
    tokens = randn(2, 4, 3)
    close(twin.positions(tokens), tokens.reshape(8, 3))


def test_assignment_by_hand() -> None:
    points, centres = tensor([[0], [3], [2], [9]]), tensor([[0], [4], [4]])
    assert twin.assign(points, centres) == [0, 1, 0, 1]  # ties go to the first
    assert twin.inertia(points, centres) == 0 + 1 + 4 + 25


def test_lloyd_by_hand() -> None:
    points, centres = tensor([[0], [2], [6], [8]]), tensor([[0], [1], [100]])
    once = twin.k_means(points, centres, 1)
    close(once, tensor([[0], [16 / 3], [100]]))  # the third has no points and stays
    close(twin.k_means(points, centres, 2), tensor([[1], [7], [100]]))
    close(twin.k_means(points, centres, 50), tensor([[1], [7], [100]]))
    close(twin.k_means(points, centres, 0), centres)


def test_lloyd_never_raises_the_inertia() -> None:
    points, centres = randn(20, 3), randn(4, 3, seed=1)
    values = [twin.inertia(points, twin.k_means(points, centres, count)) for count in range(6)]
    assert values == sorted(values, reverse=True)
    settled = twin.k_means(points, centres, 100)
    close(twin.move_centres(points, twin.assign(points, settled), settled), settled)


@pytest.mark.parametrize("code", ["centre", "onehot", "embedding"])
def test_replacement(code: str) -> None:
    h, centres, embeddings = randn(2, 3, 2, 2), randn(4, 3, seed=1), randn(4, 5, seed=2)
    table = {"centre": centres, "onehot": torch.eye(4).double(), "embedding": embeddings}[code]
    nearest = torch.cdist(h.permute(0, 2, 3, 1).reshape(8, 3), centres).argmin(1)
    expected = table[nearest].reshape(2, 2, 2, -1)
    close(twin.replace_by_clusters(h, centres, code, embeddings), expected.permute(0, 3, 1, 2))
    tokens = h.permute(0, 2, 3, 1).reshape(2, 4, 3)
    close(twin.replace_by_clusters(tokens, centres, code, embeddings), expected.reshape(2, 4, -1))
    flat = tokens.reshape(8, 3)
    close(twin.replace_by_clusters(flat, centres, code, embeddings), expected.reshape(8, -1))


def test_replacement_asks_for_the_embeddings() -> None:
    with pytest.raises(ValueError, match="embeddings"):
        twin.replace_by_clusters(randn(2, 3), randn(4, 3), "embedding")


def test_level_step() -> None:
    x, y = randn(3, 2, 3, 3), torch.tensor([1, 0, 1])
    kernel, head = randn(4, 2, 2, 2, seed=1), [randn(2, 4, seed=2), randn(2, seed=3)]
    step = twin.level_step(lambda x, p: F.conv2d(x, p[0]).relu(), [kernel], head, x, y)
    leaves = [t.clone().requires_grad_() for t in (kernel, *head)]
    averaged = F.conv2d(x, leaves[0]).relu().mean((2, 3))
    loss = F.cross_entropy(F.linear(averaged, leaves[1], leaves[2]), y)
    close(step.loss, loss.detach())
    close([*step.gradients, *step.head_gradients], list(torch.autograd.grad(loss, leaves)))
