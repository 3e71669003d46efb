import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from localprop.analysis.probes import linear_probe


def test_probe__finds_separable_classes() -> None:
    torch.manual_seed(0)
    target, test_target = torch.randint(4, (400,)), torch.randint(4, (200,))
    means = 10 * torch.randn(4, 8)
    h, test_h = means[target] + torch.randn(400, 8), means[test_target] + torch.randn(200, 8)
    found = linear_probe(h, target, test_h, test_target)
    assert (found.train_error, found.test_error) == (0, 0)
    assert found.converged
    assert 60 < found.chance_error < 90


def test_probe__is_at_chance_on_random_labels() -> None:
    torch.manual_seed(0)
    h, test_h = torch.randn(200, 300), torch.randn(4000, 300)
    found = linear_probe(h, torch.randint(4, (200,)), test_h, torch.randint(4, (4000,)), penalties=[1e-4])
    assert found.train_error == 0  # more features than samples: it learns them by heart
    assert found.test_error == pytest.approx(75, abs=3)


def test_probe__is_the_minimum_that_scikit_learn_finds() -> None:
    torch.manual_seed(0)
    target = torch.randint(3, (300,))
    h = torch.randn(300, 5) * torch.tensor([1.0, 10, 0.1, 1, 1]) + torch.randn(3, 5)[target]
    test_target = torch.randint(3, (1000,))
    test_h = torch.randn(1000, 5) * torch.tensor([1.0, 10, 0.1, 1, 1]) + torch.randn(3, 5)[test_target]
    found = linear_probe(h, target, test_h, test_target, penalties=[0.01])
    mean, std = h.mean(0), h.std(0, correction=0)
    other = LogisticRegression(C=1 / (0.01 * 300), max_iter=1000).fit(np.asarray((h - mean) / std), target.numpy())
    expected = 100 * (1 - other.score(np.asarray((test_h - mean) / std), test_target.numpy()))
    assert found.test_error == pytest.approx(expected, abs=0.3)


def test_probe__chooses_the_penalty_without_the_test_samples() -> None:
    torch.manual_seed(0)
    h, target = torch.randn(200, 50), torch.randint(2, (200,))
    h[:, 0] += 2 * target
    first = linear_probe(h, target, h[:50], target[:50])
    second = linear_probe(h, target, h[:50], 1 - target[:50])
    assert first.penalty == second.penalty
    assert first.penalty > 1e-4  # 49 features of noise ask for a bound


def test_probe__says_when_it_did_not_converge() -> None:
    torch.manual_seed(0)
    h, target = torch.randn(100, 20), torch.randint(5, (100,))
    assert not linear_probe(h, target, h, target, iterations=2).converged


def test_probe__of_constant_features_answers_the_most_frequent_class() -> None:
    target = torch.tensor([0, 1, 1, 1, 2, 1])
    found = linear_probe(torch.full((6, 3), 0.1), target, torch.full((4, 3), 0.1), torch.tensor([1, 1, 0, 2]))
    assert found.test_error == found.chance_error == 50


def test_probe__takes_one_class_and_classes_that_only_the_test_has() -> None:
    torch.manual_seed(0)
    h = torch.randn(6, 2)
    one = torch.zeros(6, dtype=torch.int64)
    assert linear_probe(h, one, h, one).test_error == 0
    assert linear_probe(h, one, h, one + 3).test_error == 100


@pytest.mark.parametrize(
    ("h", "target", "settings", "message"),
    [
        (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), {}, "at least 5 samples"),
        (torch.full((6, 2), math.inf), torch.zeros(6, dtype=torch.int64), {}, "finite"),
        (torch.randn(6, 2), torch.zeros(6), {}, "int64 class index"),
        (torch.randn(6, 2), torch.full((6,), 7), {"num_classes": 3}, "0 .. 2"),
        (torch.randn(6, 2), torch.zeros(6, dtype=torch.int64), {"penalties": [0.0]}, "penalties"),
        (torch.randn(6, 3), torch.zeros(6, dtype=torch.int64), {}, "test_features: need 3 features"),
    ],
)
def test_probe__refuses(h, target, settings, message) -> None:
    test_h = torch.randn(2, 2)
    with pytest.raises(ValueError, match=message):
        linear_probe(h, target, test_h, torch.zeros(2, dtype=torch.int64), **settings)


def test_probe__does_not_reach_back_into_what_made_the_features() -> None:
    torch.manual_seed(0)
    h = torch.randn(20, 3, requires_grad=True)
    target = torch.arange(20) % 2
    linear_probe(h, target, h, target)
    assert h.grad is None
