"""Tables of numbers: small real data sets, on which methods must come far below the error of guessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn import datasets
from torch import Tensor, nn

import localprop
from localprop.train.executor import LocalExecutor

HIDDEN, STEPS, BATCH = 32, 50, 32
SETS: dict[str, tuple[Callable[..., Any], int, float]] = {
    "iris": (datasets.load_iris, 3, 20.0),
    "wine": (datasets.load_wine, 3, 10.0),
    "breast-cancer": (datasets.load_breast_cancer, 2, 10.0),
    "digits": (datasets.load_digits, 10, 20.0),
}
"""Name -> (loader, classes, test error in % that no method may pass). Guessing gives 60 to 90, on breast cancer 37."""
METHODS = ("bp", "dcl", "pred", "predsim", "feat", "contrast", "fa", "regression")
CASES = [*((method, name) for name in SETS for method in METHODS), ("ff", "wine"), ("ff", "breast-cancer")]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(loader: Callable[..., Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return standardised features and targets for training and for testing, every fourth sample being for testing."""
    features, targets = loader(return_X_y=True)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(targets)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[torch.arange(len(x)) % 4 > 0], order[torch.arange(len(x)) % 4 == 0]
    mean, std = x[train].mean(0), x[train].std(0).clamp(min=1e-3)
    x = (x - mean) / std
    return x[train], y[train], x[test], y[test]


def network(inputs: int, outputs: int) -> localprop.LocalNetwork:
    def stage(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU())

    return localprop.LocalNetwork([stage(inputs), stage(HIDDEN), nn.Linear(HIDDEN, outputs)])


def trained(method: str, x: Tensor, y: Tensor, outputs: int, **settings: object) -> localprop.Rule:
    torch.manual_seed(0)
    rule = localprop.methods.build(method, network(x.shape[1], outputs), num_classes=outputs, example=x[:2], **settings)
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.01))
    generator = torch.Generator().manual_seed(0)
    for number in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        executor.step(number, x[chosen], y[chosen])
    return rule.eval()


@pytest.mark.parametrize(("method", "name"), CASES)
def test_classes_of_tables_are_learned(method: str, name: str):
    loader, classes, most = SETS[name]
    x, y, test_x, test_y = load(loader)
    answer = trained(method, x, y, classes).predict(test_x).argmax(1)
    assert 100 * float((answer != test_y).float().mean()) <= most


def test_numbers_are_predicted_at_every_block():
    """The mean has an R^2 of 0, and least squares on the features about 0.48 on these test samples."""
    x, y, test_x, test_y = load(datasets.load_diabetes)
    mean, std = y.mean(), y.std()
    rule = trained("regression", x, ((y - mean) / std).float()[:, None], 1)
    for prediction in rule.exits(test_x):
        residual = test_y - (prediction[:, 0] * std + mean)
        assert 1 - float(residual.square().mean() / test_y.var(correction=0)) > 0.3
