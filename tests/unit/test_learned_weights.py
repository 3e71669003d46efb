"""Weights over blocks that are learned on held-out images: the best convex ones, and none for silent blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import localprop
from localprop import models
from localprop.infer.ensemble import ensemble_probabilities, learn_weights, mixture_weights
from localprop.infer.evaluate import evaluate


def log_likelihood(weights: np.ndarray, likelihoods: np.ndarray) -> float:
    return float(np.log(likelihoods @ weights).sum())


@pytest.mark.parametrize("seed", range(4))
def test_they_are_the_convex_weights_of_largest_likelihood(seed: int):
    likelihoods = np.random.default_rng(seed).uniform(0.01, 1, (60, 4)) ** np.array([1, 2, 3, 0.5])
    found = mixture_weights(torch.from_numpy(likelihoods)).numpy()
    best = minimize(
        lambda w: -log_likelihood(w, likelihoods),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12},
    ).x
    assert found.sum() == pytest.approx(1)
    assert log_likelihood(found, likelihoods) >= log_likelihood(best, likelihoods) - 1e-5
    np.testing.assert_allclose(found, best, atol=1e-3)


def test_an_expert_that_is_always_surer_gets_all_the_weight():
    likelihoods = torch.tensor([[0.9, 0.3], [0.8, 0.2], [0.99, 0.5]], dtype=torch.float64)
    assert mixture_weights(likelihoods).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_two_experts_for_half_of_the_samples_each_share_it_equally():
    likelihoods = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
    assert mixture_weights(likelihoods).tolist() == pytest.approx([0.5, 0.5])


def test_a_silent_block_gets_none_and_hopeless_samples_are_left_out():
    likelihoods = torch.tensor([[0.0, 0.5, 0.1], [0.0, 0.2, 0.6], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = mixture_weights(likelihoods)
    assert found[0] == 0
    torch.testing.assert_close(found, torch.cat([torch.zeros(1).double(), mixture_weights(likelihoods[:2, 1:])]))


def test_without_any_likelihood_there_are_no_weights():
    with pytest.raises(ValueError, match="weights cannot be learned"):
        mixture_weights(torch.zeros(3, 2))


@pytest.mark.parametrize("method", ["pred", "bp", "cafo-ce"])
def test_they_are_learned_from_the_exits_of_a_rule(method: str):
    torch.manual_seed(0)
    net = localprop.split(models.conv((1, 28, 28), 4, width=0.0625))
    rule = localprop.methods.build(method, net, num_classes=4, example=torch.zeros(2, 1, 28, 28)).eval()
    x, y = torch.randn(12, 1, 28, 28), torch.arange(12) % 4
    weights = learn_weights(rule, [(x[:5], y[:5]), (x[5:], y[5:])])
    exits = rule.exits(x)
    assert sum(weights) == pytest.approx(1)
    assert [weight == 0 for weight in weights] >= [logits is None for logits in exits]
    error = (ensemble_probabilities(exits, weights).argmax(1) != y).float().mean()
    assert evaluate(rule, [(x, y)], weights).ensemble_errors["learned"] == pytest.approx(100 * float(error))
    assert "learned" not in evaluate(rule, [(x, y)]).ensemble_errors
