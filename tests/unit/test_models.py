"""The reference networks: published numbers of parameters, sizes of images, settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import localprop
from localprop import models
from localprop.methods import recipe_for

SIZES = [(1, 28, 28), (3, 32, 32), (3, 48, 48), (3, 64, 64), (3, 96, 96)]


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", models.CATALOGUE)
def test_every_network_takes_images_of_28_to_96_pixels(name: str, shape: tuple[int, int, int]):
    with torch.device("meta"):
        net = models.CATALOGUE[name](shape, 7).eval()
        assert net(torch.zeros(2, *shape)).shape == (2, 7)
        assert len(net.specs(torch.zeros(2, *shape), 7)) == len(net)


@pytest.mark.parametrize(
    ("factory", "shape", "settings", "millions"),
    [
        (models.vgg11b, (3, 32, 32), {}, 11.6),
        (models.vgg11b, (3, 32, 32), {"width": 2, "hidden": 1024}, 42.0),
        (models.vgg11b, (3, 32, 32), {"width": 3, "hidden": 1024}, 91.3),
        (models.vgg8b, (1, 28, 28), {"width": 2, "hidden": 1024}, 28.2),
    ],
)
def test_published_numbers_of_parameters(factory, shape, settings, millions):
    with torch.device("meta"):
        assert round(count(factory(shape, 10, **settings)) / 1e6, 1) == millions


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_plain_vggs_are_a_chain_of_convolutions_and_a_linear_layer(name: str, convolutions: int):
    with torch.device("meta"):
        net = models.CATALOGUE[name]((3, 32, 32), 10)
    assert len(net) == convolutions + 1
    assert sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == 5
    widths = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    expected = 512 * 10 + 10 + sum(9 * a * b + 3 * b for a, b in zip([3, *widths[:-1]], widths, strict=True))
    assert count(net) == expected
    # The torchvision network of the name has the same convolutions; its classifier is another.
    from torchvision.models import get_model

    with torch.device("meta"):
        theirs = [module.out_channels for module in get_model(f"{name}_bn").modules() if isinstance(module, nn.Conv2d)]
    assert widths == theirs


def test_the_mlp_has_the_widths_that_it_is_given():
    net = models.mlp((1, 4, 4), 3, hidden=(8, 6), batch_norm=False, dropout=0.1, nonlinearity="tanh")
    assert [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)] == [
        (16, 8),
        (8, 6),
        (6, 3),
    ]
    assert [len(block) for block in net.blocks[:-1]] == [4, 3]
    assert not any(isinstance(module, nn.BatchNorm1d) for module in net.modules())
    assert sum(isinstance(module, nn.Tanh) for module in net.modules()) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mlp((1, 4, 4), 3, hidden=()), "at least one hidden layer"),
        (lambda: models.mlp((1, 4, 4), 3, hidden=(8, 0)), "at least one hidden layer, each at least 1"),
        (lambda: models.cnn((1, 7, 7), 3), "needs 8 pixels or more"),
        (lambda: models.cnn((1, 8, 8), 3, width=float("inf")), "positive and finite, got inf"),
        (lambda: models.vgg11b((3, 15, 15), 3), "vgg11b needs images of 16 pixels"),
        (lambda: models.vgg8b((3, 32, 32), 3, hidden=7), "even number"),
        (
            lambda: models.cnn((3, 32, 32), 3, nonlinearity="swish"),
            "must be 'relu', 'leaky_relu' or 'tanh', got 'swish'",
        ),
    ],
)
def test_networks_that_cannot_be_built_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_recipes_of_the_networks_of_the_local_errors_are_theirs():
    recipe = recipe_for("pred", "mlp", "fashion-mini")
    assert (recipe.optimizer, recipe.weight_decay, recipe.dropout, recipe.epochs) == ("Adam", 0.0, 0.025, 200)
    assert recipe_for("dcl", "vgg11b", "svhn").source.endswith("none is published for svhn")


def test_a_method_can_train_unlike_its_network(monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    from localprop.train.config import config_from

    own = {"optimizer": "SGD", "lr": 0.3, "optimizer_settings": {"momentum": 0.8}, "weight_decay": 0.0}
    other = replace(localprop.methods.get("pred"), name="own", training=own)
    monkeypatch.setitem(localprop.methods.CATALOGUE, "own", other)
    optimizer = config_from({"method": "own", "model": "conv"}).optimizer
    assert (optimizer.name, optimizer.settings["lr"], optimizer.settings["momentum"]) == ("SGD", 0.3, 0.8)
    assert "lr" in recipe_for("own", "conv", "mnist").source
    assert config_from({"method": "pred", "model": "conv"}).optimizer.name == "AdamW"


def test_groups_learn_at_the_rates_of_their_rule(monkeypatch: pytest.MonkeyPatch):
    from localprop.train.executor import LocalExecutor

    net = models.mlp((1, 2, 2), 3, hidden=(4,), batch_norm=False)
    rule = localprop.methods.build("dcl-s", net, num_classes=3, example=torch.zeros(2, 1, 2, 2))
    monkeypatch.setattr(rule, "lr_factor", lambda key: 0.0 if key[0] == 0 else 1.0)
    before = [parameter.clone() for parameter in rule.parameters()]
    executor = LocalExecutor(rule, lambda group: torch.optim.SGD(group, lr=1.0))
    executor.step(0, torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2] * 2), lr_factor=0.5)
    assert [o.param_groups[0]["lr"] for o in executor.optimizers.values()] == [0.0, 0.5]
    moved = [not torch.equal(a, b) for a, b in zip(before, rule.parameters(), strict=True)]
    assert moved == [False, False, True, True]
