"""Local regression against its twin: losses, predictions and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop
from tests.reference.prediction import pred_logits
from tests.reference.regression import one_hot, regression_loss, squared_error

EXACT = {"rtol": 1e-9, "atol": 1e-12}
PROVED = ["regression"]
OUTPUTS, BUDGET = 2, 6


def targets(kind: str) -> tuple[Tensor, Tensor]:
    """Return what the rule is given and the real numbers that it stands for."""
    if kind == "classes":
        y = torch.tensor([0, 1, 1, 0])
        return y, one_hot(y, OUTPUTS)
    y = torch.randn(4, OUTPUTS, dtype=torch.float64)
    return y, y


@pytest.mark.parametrize("scored", ["output", "activation"])
@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_losses_predictions_and_gradients_are_those_of_the_twin(kind: str, scored: str):
    torch.manual_seed(2)
    x, (y, numbers) = torch.randn(4, 1, 4, 4, dtype=torch.float64), targets(kind)
    net = localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh()),
            nn.Linear(5, OUTPUTS),
        ]
    ).double()
    settings = {"feature_budget": BUDGET, "scored": scored}
    rule = localprop.methods.build("regression", net, num_classes=OUTPUTS, example=x, **settings).double()
    h = x
    for step, block, objective in zip(rule.steps(x, y), net.blocks, rule.objectives, strict=True):
        activation = torch.tanh(block[:1](h)) if step.key[0] == 0 else block(h)
        output = block[2](activation) if step.key[0] == 0 else activation
        read = activation if scored == "activation" else output
        if step.key[0] == len(net) - 1:
            predicted, loss = output, squared_error(output, numbers)
        else:
            head = objective.classifier.weight, objective.classifier.bias
            predicted, loss = pred_logits(read, *head, BUDGET), regression_loss(read, numbers, *head, BUDGET)
        parameters = [*block.parameters(), *objective.parameters()]
        torch.testing.assert_close(step.loss, loss.detach(), **EXACT)
        torch.testing.assert_close(step.logits, predicted.detach(), **EXACT)
        expected = torch.autograd.grad(loss, parameters)
        torch.testing.assert_close([p.grad for p in parameters], list(expected), **EXACT)
        assert all(bool(gradient.any()) for gradient in expected)
        h = output.detach()
