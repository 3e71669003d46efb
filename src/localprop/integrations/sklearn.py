"""Local learning as estimators of scikit-learn, for tables of features and for images in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

try:
    from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data
except ImportError as missing:
    raise ImportError(
        "localprop.integrations.sklearn needs scikit-learn 1.6 or newer: pip install 'localprop[sklearn]'",
        name="sklearn",
    ) from missing

from localprop import methods
from localprop.integrations.estimator import LocalEstimator, Network

__all__ = ["LocalClassifier", "LocalRegressor"]


class LocalClassifier(ClassifierMixin, LocalEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Classify by a network whose blocks are trained locally.

    Features are taken as they are, in single precision: put a `StandardScaler` before it. Optimiser and schedule are
    those of the method's recipe for multilayer perceptrons.

    Args:
        method: A name that `localprop methods` lists.
        hidden_layer_sizes: Width of each hidden block, [linear, batch norm, ReLU], each at least 1.
        method_settings: The method's own settings by name; None takes its defaults.
        network: Builds another network: `(shape of a sample, number of classes) -> module`, such as
            `localprop.models.vgg8b`; `hidden_layer_sizes` is not read then.
        image_shape: (C, H, W) of images that stand flattened in the rows of X; None hands the rows on.
        epochs: Passes over the samples, 1 or more.
        batch_size: Samples a step, 1 or more; batches are made of nearly equal size.
        learning_rate: Of every block's optimiser, positive; None takes the recipe's.
        random_state: Seed of weights, order and dropout, as everywhere in scikit-learn.

    Attributes:
        classes_: The labels, sorted.
        rule_: The trained rule, for all else that localprop does with one.
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, where X had names.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = LocalClassifier("dcl", hidden_layer_sizes=(32, 32), random_state=0).fit(X, y)
        >>> sorted(classifier.layer_scores(X, y))
        ['hidden1', 'hidden2', 'output']
        >>> bool(classifier.score(X, y) > 0.9)
        True
    """

    def __init__(
        self,
        method: str = "dcl",
        *,
        hidden_layer_sizes: Sequence[int] = (128, 128),
        method_settings: Mapping[str, Any] | None = None,
        network: Network | None = None,
        image_shape: tuple[int, int, int] | None = None,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.hidden_layer_sizes = hidden_layer_sizes
        self.method_settings = method_settings
        self.network = network
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> LocalClassifier:
        """Train on features, shape (N, F), and labels of any kind, shape (N,).

        Raises:
            ValueError: A parameter out of its range, one class alone, or a method that cannot train such a network.
            TrainingError: Training diverged.
        """
        self._check_parameters()
        features, labels = validate_data(self, X, y, dtype=self._dtype)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: needs two classes or more, got one class, {self.classes_[0]}")
        self._train(features, torch.from_numpy(numbers.astype(np.int64)), len(self.classes_))
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label of each row, shape (N,)."""
        return self._labels(self._answer(X))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class, in the order of `classes_`, shape (N, Z)."""
        return self._answer(X).softmax(1).numpy()

    def predict_layers(self, X: ArrayLike) -> dict[str, NDArray[Any]]:
        """Return the labels that each block gives, by its name; blocks that make no prediction are left out."""
        return {name: self._labels(logits) for name, logits in self._layers(X).items()}

    def layer_scores(self, X: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """Return the accuracy of each block by itself, by its name."""
        return {name: float(accuracy_score(y, labels)) for name, labels in self.predict_layers(X).items()}

    def _labels(self, logits: Tensor) -> NDArray[Any]:
        labels: NDArray[Any] = self.classes_[logits.argmax(1).numpy()]
        return labels


class LocalRegressor(RegressorMixin, MultiOutputMixin, LocalEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Predict real numbers, one or more a row, by a network whose blocks are trained locally.

    Targets are scaled to mean 0 and standard deviation 1 for training, and predictions back. Arithmetic is in double
    precision.

    Args:
        method: A method that takes real-valued targets.
        hidden_layer_sizes: As of `LocalClassifier`, and so are the other parameters.
        method_settings: The method's own settings.
        network: Builds another network: `(shape of a sample, number of targets) -> module`.
        image_shape: (C, H, W) of flattened images.
        epochs: Passes over the samples.
        batch_size: Samples a step.
        learning_rate: Of every block's optimiser.
        random_state: Seed of weights, order and dropout.

    Attributes:
        rule_: The trained rule; its answers are scaled targets.
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, where X had names.
    """

    _dtype = np.float64

    def __init__(
        self,
        method: str = "regression",
        *,
        hidden_layer_sizes: Sequence[int] = (128, 128),
        method_settings: Mapping[str, Any] | None = None,
        network: Network | None = None,
        image_shape: tuple[int, int, int] | None = None,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.hidden_layer_sizes = hidden_layer_sizes
        self.method_settings = method_settings
        self.network = network
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> LocalRegressor:
        """Train on features, shape (N, F), and targets, shape (N,) or (N, T).

        Raises:
            ValueError: A parameter out of its range, or a method that takes classes alone.
            TrainingError: Training diverged.
        """
        self._check_parameters()
        if not methods.get(self.method).real_targets:
            known = ", ".join(name for name, method in methods.catalogue().items() if method.real_targets)
            raise ValueError(f"method: {self.method!r} takes classes alone, not real numbers; choose {known}")
        features, targets = validate_data(self, X, y, dtype=self._dtype, multi_output=True, y_numeric=True)
        self._single = targets.ndim == 1
        columns = targets.astype(self._dtype).reshape(len(targets), -1)
        self._mean = columns.mean(0)
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            spread = columns.std(0)
        if not np.isfinite(spread).all():
            raise ValueError("y: the targets are too large for their standard deviation to be computed; scale them")
        self._scale = np.where(spread > 0, spread, 1.0)
        self._train(features, torch.from_numpy((columns - self._mean) / self._scale), columns.shape[1])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the targets of each row, shaped as those of `fit`."""
        return self._targets(self._answer(X))

    def predict_layers(self, X: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Return the targets that each block gives, by its name; blocks that make no prediction are left out."""
        return {name: self._targets(answers) for name, answers in self._layers(X).items()}

    def layer_scores(self, X: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """Return the coefficient of determination of each block by itself, by its name."""
        return {name: float(r2_score(y, targets)) for name, targets in self.predict_layers(X).items()}

    def _targets(self, answers: Tensor) -> NDArray[np.float64]:
        targets: NDArray[np.float64] = answers.numpy() * self._scale + self._mean
        return targets[:, 0] if self._single else targets
