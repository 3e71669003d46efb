"""Training on tensors in memory: what it does is the plain loop, batch by batch and phase by phase."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop import methods
from localprop.seed import derive
from localprop.train.tensors import train_tensors

RECIPE = replace(methods.recipe_for("pred", "mlp", "mnist"), lr=0.01)


def table(rows: int = 37) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def rule_of(method: str, x: Tensor) -> localprop.Rule:
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)) for width in (6, 16)]
    return methods.build(method, localprop.LocalNetwork([*hidden, nn.Linear(16, 3)]), num_classes=3, example=x)


def test_it_is_the_plain_loop():
    x, y = table()
    trained, by_hand = rule_of("pred", x), rule_of("pred", x)
    train_tensors(trained, x, y, recipe=RECIPE, epochs=4, batch_size=10, seed=5)

    by_hand.seed = derive(5, "blocks")
    optimizers = {
        key: torch.optim.Adam(group, lr=0.01, weight_decay=0.0, fused=True)
        for key, group in by_hand.parameter_groups().items()
    }
    for number in range(16):
        epoch, place = divmod(number, 4)
        order = torch.randperm(37, generator=torch.Generator().manual_seed(derive(5, "order", epoch)))
        chosen = order.tensor_split(4)[place]
        for optimizer in optimizers.values():
            passed = sum(number / 16 >= milestone for milestone in RECIPE.milestones)
            optimizer.param_groups[0]["lr"] = 0.01 * RECIPE.gamma**passed
        by_hand.begin(number)
        for step in by_hand.steps(x[chosen], y[chosen]):
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
    assert not trained.training
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


@pytest.mark.parametrize("method", ["layerwise", "cafo-mse", "dtp"])
def test_phases_of_every_kind_are_gone_through(method):
    x, y = table(120)
    trained = rule_of(method, x)
    before = (trained.eval().predict(x).argmax(1) != y).double().mean()
    train_tensors(trained, x, y, recipe=RECIPE, epochs=20, batch_size=24, seed=0)
    assert (trained.predict(x).argmax(1) != y).double().mean() < min(0.3, before)


def test_the_random_state_is_left_alone():
    x, y = table()
    trained = rule_of("pred", x)
    before = torch.get_rng_state()
    train_tensors(trained, x, y, recipe=RECIPE, epochs=1, batch_size=10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", 0)])
def test_numbers_below_one_are_refused(name, value):
    x, y = table()
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, got 0"):
        train_tensors(rule_of("pred", x), x, y, recipe=RECIPE, **{"epochs": 1, "batch_size": 8, name: value})


def test_no_samples_are_refused():
    x, y = table()
    with pytest.raises(ValueError, match="x: there are no samples to train on"):
        train_tensors(rule_of("pred", x), x[:0], y[:0], recipe=RECIPE, epochs=1, batch_size=8)


def test_inputs_and_targets_of_different_number_are_refused():
    x, y = table()
    with pytest.raises(ValueError, match="x, y: need equally many samples, got 37 and 36"):
        train_tensors(rule_of("pred", x), x, y[1:], recipe=RECIPE, epochs=1, batch_size=8)
