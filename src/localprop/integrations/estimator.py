"""What the estimators of scikit-learn share: parameters that are checked, training, answers in batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from localprop import methods
from localprop.models.parts import hidden_block
from localprop.network import LocalNetwork
from localprop.rules import Rule
from localprop.seed import derive, seeded
from localprop.splitting import split
from localprop.train.tensors import train_tensors

Network = Callable[[tuple[int, ...], int], nn.Module]
"""Builds a network for the shape of one sample and a number of outputs; the factories of `localprop.models` do."""

_BATCH_SIZE = 1024


class LocalEstimator(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Train a network by local learning; what the classifier and the regressor share."""

    _dtype: type[np.floating[Any]] = np.float32
    method: str
    hidden_layer_sizes: Sequence[int]
    method_settings: Mapping[str, Any] | None
    network: Network | None
    image_shape: tuple[int, int, int] | None
    epochs: int
    batch_size: int
    learning_rate: float | None
    random_state: Any

    def _train(self, features: NDArray[Any], y: Tensor, outputs: int) -> None:
        """Fit `rule_` to features and targets, drawing all that is random from `random_state`."""
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        x = self._inputs(features)
        recipe = methods.recipe_for(self.method, "mlp", "mnist")
        if self.learning_rate is not None:
            recipe = replace(recipe, lr=self.learning_rate)
        settings = {**recipe.method_settings, **(self.method_settings or {})}
        with seeded(derive(seed, "network"), x.device):
            build = self._perceptron if self.network is None else self.network
            model = build(tuple(x.shape[1:]), outputs)
        if not isinstance(model, nn.Module):
            raise ValueError(f"network: must return an nn.Module, got a {type(model).__name__}")
        net = split(model.to(x.dtype), example=x[:1])
        with seeded(derive(seed, "method"), x.device):
            rule = methods.build(self.method, net, num_classes=outputs, example=x[:2], **settings).to(x.dtype)
        train_tensors(rule, x, y, recipe=recipe, epochs=self.epochs, batch_size=self.batch_size, seed=seed)
        self.rule_: Rule = rule

    def _check_parameters(self) -> None:
        """Refuse parameters that nothing can be trained with."""
        if not isinstance(self.method, str):
            raise ValueError(f"method: must be a name, got {self.method!r}; localprop methods lists them")
        if not _are_counts(self.hidden_layer_sizes):
            raise ValueError(
                f"hidden_layer_sizes: must be the widths of one hidden layer or more, each a whole number from 1, got "
                f"{self.hidden_layer_sizes!r}; such as (128, 128)"
            )
        if self.image_shape is not None and not (_are_counts(self.image_shape) and len(self.image_shape) == 3):
            raise ValueError(
                f"image_shape: must be (channels, height, width), got {self.image_shape!r}; None for tables"
            )
        if self.method_settings is not None and not isinstance(self.method_settings, Mapping):
            raise ValueError(f"method_settings: must be a mapping from names to values, got {self.method_settings!r}")
        if self.network is not None and not callable(self.network):
            raise ValueError(
                f"network: must be a function (shape, outputs) -> module, got {self.network!r}; see localprop.models"
            )
        for name in ("epochs", "batch_size"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name}: must be a whole number from 1, got {getattr(self, name)!r}")
        rate = self.learning_rate
        if rate is not None and not (isinstance(rate, Real) and 0 < rate < math.inf):
            raise ValueError(f"learning_rate: must be positive and finite, got {rate!r}; None takes the recipe's")

    def _perceptron(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Build [linear, batch norm, ReLU] for every hidden width, then a linear layer; one output is allowed."""
        sizes = tuple(self.hidden_layer_sizes)
        widths = itertools.pairwise((math.prod(shape), *sizes))
        hidden = [hidden_block(*pair, flatten=index == 0) for index, pair in enumerate(widths)]
        names = [*(f"hidden{index + 1}" for index in range(len(sizes))), "output"]
        return LocalNetwork([*hidden, nn.Linear(sizes[-1], outputs)], names)

    def _inputs(self, features: NDArray[Any]) -> Tensor:
        """Return the rows as what the network takes."""
        x = torch.tensor(features)  # a copy: the array may be read-only
        if self.image_shape is None:
            return x
        if math.prod(self.image_shape) != x.shape[1]:
            raise ValueError(
                f"image_shape: {self.image_shape} has not the {x.shape[1]} values of a row of X; give (C, H, W)"
            )
        return x.view(-1, *self.image_shape)

    def _parts(self, X: ArrayLike) -> tuple[Tensor, ...]:
        """Return the network's inputs in batches."""
        check_is_fitted(self)
        x = self._inputs(validate_data(self, X, reset=False, dtype=self._dtype))
        return torch.split(x, _BATCH_SIZE)

    def _answer(self, X: ArrayLike) -> Tensor:
        """Return the network's answer, shape (N, Z)."""
        parts = self._parts(X)
        with torch.no_grad():
            return torch.cat([self.rule_.predict(part) for part in parts])

    def _layers(self, X: ArrayLike) -> dict[str, Tensor]:
        """Return what every block answers that makes a prediction, shape (N, Z) each."""
        parts = self._parts(X)
        with torch.no_grad():
            exits = [self.rule_.exits(part) for part in parts]
        columns = zip(self.rule_.net.names, zip(*exits, strict=True), strict=True)
        return {name: torch.cat(answers) for name, answers in columns if answers[0] is not None}


def _are_counts(values: object) -> bool:
    return isinstance(values, Sequence | np.ndarray) and len(values) > 0 and all(map(_is_count, values))


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1
