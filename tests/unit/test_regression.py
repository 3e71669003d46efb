"""Real-valued targets: what the method regression takes, and what others refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.objectives import CrossEntropy, LinearRegression, SquaredError, WeightedSum
from localprop.rules import Greedy
from localprop.train.executor import LocalExecutor


def net(outputs: int) -> localprop.LocalNetwork:
    torch.manual_seed(0)
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Linear(6, 24), nn.Tanh()),
            nn.Sequential(nn.Linear(24, 24), nn.Tanh()),
            nn.Linear(24, outputs),
        ]
    )


def rule(outputs: int, method: str = "regression") -> localprop.Rule:
    return localprop.methods.build(method, net(outputs), num_classes=outputs, example=torch.zeros(1, 6))


def batch(outputs: int, size: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :outputs] * x[:, 2 : 2 + outputs]


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_block_predicts_the_targets(outputs: int):
    x, y = batch(outputs)
    trained = rule(outputs)
    executor = LocalExecutor(trained, lambda group: torch.optim.Adam(group, lr=0.02))
    for number in range(60):
        steps = executor.step(number, x, y)
    assert all(step.logits.shape == y.shape for step in steps)
    exits = trained.eval().exits(x)
    errors = [float((prediction - y).square().mean() / y.var()) for prediction in exits]
    assert len(exits) == 3
    assert max(errors) < 0.2
    assert torch.equal(trained.predict(x), exits[-1])


def test_targets_of_another_precision_are_those_of_the_network():
    x, y = batch(2)
    double, single = (next(iter(rule(2).steps(x, target))).loss for target in (y.double(), y))
    assert double.dtype == torch.float32
    assert torch.equal(double, single)


@pytest.mark.parametrize(
    ("outputs", "target", "message"),
    [
        (1, lambda y: y[:, 0], r"y: need real-valued targets of shape \(64, 1\), got torch.float32 of shape \(64,\)"),
        (1, lambda y: y[:, 0].long(), r"real-valued targets of shape \(64, 1\), got torch.int64 of shape \(64,\)"),
        (2, lambda y: y.long(), r"got torch.int64 of shape \(64, 2\); use y.float\(\)"),
        (
            2,
            lambda y: y[:10],
            r"of shape \(64, 2\), or int64 class indices of shape \(64,\), got torch.float32 of shape \(10, 2\)",
        ),
        (2, lambda y: y / 0, "y: targets must be finite"),
        (2, lambda y: torch.full((64,), 2), r"y: labels must lie in 0 .. 1 \(2 classes\), got 2"),
    ],
)
def test_targets_that_do_not_fit_are_refused(outputs: int, target, message: str):
    x, y = batch(outputs)
    with pytest.raises(ValueError, match=message):
        next(iter(rule(outputs).steps(x, target(y))))


def test_other_methods_refuse_real_valued_targets():
    x, y = batch(2)
    for method in ("dcl", "bp"):
        with pytest.raises(
            ValueError, match=r"one int64 class index.*real-valued targets are for the method regression"
        ):
            next(iter(rule(2, method).steps(x, y)))
    with pytest.raises(ValueError, match="need at least 2 classes to tell apart, got 1"):
        rule(1, "pred")
    with pytest.raises(ValueError, match="need at least 1 target, got 0"):
        net(1).specs(torch.zeros(1, 6), 0, fewest=1)


def test_a_rule_takes_real_valued_targets_if_all_its_objectives_do():
    x, y = batch(2)
    network = net(2)
    specs = network.specs(x, 2)
    hidden = [WeightedSum({"a": (1.0, LinearRegression(spec))}) for spec in specs[:-1]]
    assert all(
        step.loss.isfinite()
        for step in LocalExecutor(
            Greedy(network, [*hidden, SquaredError(specs[-1])]), lambda group: torch.optim.SGD(group, lr=0.1)
        ).step(0, x, y)
    )
    with pytest.raises(ValueError, match="need one int64 class index a sample"):
        next(iter(Greedy(network, [*hidden, CrossEntropy(specs[-1])]).steps(x, y)))
