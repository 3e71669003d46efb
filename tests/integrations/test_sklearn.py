"""The estimators, against scikit-learn itself: its own checks, pipelines, searches, copies and stored models."""

from __future__ import annotations

import importlib
import pickle
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn

import localprop
from localprop.integrations.sklearn import LocalClassifier, LocalRegressor

X, Y = load_wine(return_X_y=True)
X = StandardScaler().fit_transform(X)
QUICK = {"epochs": 2, "hidden_layer_sizes": (8,)}
DEMANDING = {"check_classifiers_train", "check_regressors_train", "check_regressor_data_not_an_array"}
"""Checks of what was learned, or with large tables; the slow test runs them with the defaults."""


def quick(**parameters: object) -> LocalClassifier:
    return LocalClassifier(**{"hidden_layer_sizes": (16, 16), "epochs": 10, "random_state": 0, **parameters})


@parametrize_with_checks([LocalClassifier(**QUICK), LocalRegressor(**QUICK)])
def test_the_checks_of_scikit_learn(estimator, check):
    if check.func.__name__ in DEMANDING:
        pytest.skip("in the slow test")
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [LocalClassifier(), LocalRegressor()], ids=["classifier", "regressor"])
def test_every_check_of_scikit_learn_with_the_defaults(estimator):
    results = check_estimator(estimator, on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # scikit-learn runs it where SCIPY_ARRAY_API is set


def test_it_learns_as_a_perceptron_of_scikit_learn_does():
    ours = cross_val_score(LocalClassifier("dcl", random_state=0, learning_rate=0.01, epochs=25), X, Y, cv=3).mean()
    theirs = cross_val_score(MLPClassifier((128, 128), max_iter=40, random_state=0), X, Y, cv=3)
    assert ours > 0.93
    assert ours > theirs.mean() - 0.05
    assert cross_val_score(DummyClassifier(), X, Y, cv=3).mean() < 0.5


@pytest.mark.parametrize("method", ["bp", "pred", "cafo-mse", "dfa"])
def test_methods_of_every_kind_learn(method):
    classifier = quick(method=method, hidden_layer_sizes=(32, 32), epochs=25, learning_rate=0.01).fit(X, Y)
    assert classifier.score(X, Y) > 0.9
    assert np.allclose(classifier.predict_proba(X).sum(1), 1, atol=1e-6)


def test_every_block_answers():
    classifier = quick(epochs=25, learning_rate=0.01).fit(X, Y)
    layers = classifier.predict_layers(X)
    assert list(layers) == ["hidden1", "hidden2", "output"]
    assert np.array_equal(layers["output"], classifier.predict(X))
    scores = classifier.layer_scores(X, Y)
    assert scores["output"] == classifier.score(X, Y)
    assert all(score > 0.8 for score in scores.values())
    assert list(quick(method="bp").fit(X, Y).predict_layers(X)) == ["output"]


def test_labels_are_of_any_kind_and_come_back():
    names = np.array(["B, dry", "Ä", "<b>"], dtype=object)[Y]
    classifier = quick(epochs=25, learning_rate=0.01).fit(X, names)
    assert set(classifier.predict(X)) == set(names)
    assert classifier.score(X, names) > 0.9


def test_the_seed_decides_all_and_the_world_is_left_as_it_was():
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = (quick(random_state=seed).fit(X, Y).predict_proba(X) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(torch.get_rng_state(), torch_before)
    state = np.random.RandomState(0)
    assert not np.array_equal(*(quick(random_state=state).fit(X, Y).predict_proba(X) for _ in range(2)))


def test_a_grid_over_methods_and_widths_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), quick(learning_rate=0.01))
    grid = {"localclassifier__method": ["dcl", "bp"], "localclassifier__hidden_layer_sizes": [(8,), (16, 16)]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(*load_wine(return_X_y=True))
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.5
    assert search.best_estimator_.predict(X).shape == Y.shape


@pytest.mark.slow
def test_processes_find_what_one_process_finds():
    grid = {"method": ["dcl", "pred"], "hidden_layer_sizes": [(8,), (16, 16)]}
    one, two = (GridSearchCV(quick(), grid, cv=2, n_jobs=jobs).fit(X, Y) for jobs in (1, 2))
    assert np.array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


@pytest.mark.parametrize("method", ["dcl", "overlap", "cafo-ce", "fa", "dni", "softhebb"])
def test_a_fitted_one_is_stored_and_loaded(method, tmp_path):
    fitted = quick(method=method).fit(X, Y)
    joblib.dump(fitted, tmp_path / "model.joblib")
    for loaded in (joblib.load(tmp_path / "model.joblib"), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)


def test_images_in_rows_and_a_network_of_the_catalogue():
    data = localprop.data.load("fashion-mini")
    rows, labels = data.train.images[:64].flatten(1).numpy() / 255, data.train.labels[:64].numpy()
    classifier = LocalClassifier(
        "pred", network=small_images, image_shape=(1, 28, 28), epochs=10, learning_rate=0.01, random_state=0
    )
    assert classifier.fit(rows, labels).score(rows, labels) > 0.9
    with pytest.raises(ValueError, match=r"image_shape: \(3, 28, 28\) has not the 784 values of a row"):
        classifier.set_params(image_shape=(3, 28, 28)).fit(rows, labels)


def small_images(shape: tuple[int, ...], outputs: int) -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(shape[0], 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(8 * 13 * 13, outputs)))


def small_network(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 12), nn.Tanh(), nn.Linear(12, outputs))


def test_a_network_of_your_own():
    classifier = quick(network=small_network).fit(X, Y)
    assert list(classifier.predict_layers(X)) == ["1", "2"]
    assert np.array_equal(clone(classifier).fit(X, Y).predict_proba(X), classifier.predict_proba(X))


def test_no_batch_is_of_one_sample():
    for batch_size in (1, 2, 3, 4, 7, 100):
        quick(batch_size=batch_size, epochs=1).fit(X[:7], Y[[0, 60, 150, 1, 61, 151, 2]])


@pytest.mark.parametrize("targets", [1, 2])
def test_real_valued_targets_come_back_in_their_own_units(targets):
    features, y = load_diabetes(return_X_y=True)
    y = np.stack([y * 1000, -y], 1)[:, :targets].squeeze()
    regressor = LocalRegressor(random_state=0, hidden_layer_sizes=(32, 32), epochs=8, learning_rate=0.01)
    regressor.fit(StandardScaler().fit_transform(features), y)
    answers = regressor.predict(StandardScaler().fit_transform(features))
    assert answers.shape == y.shape
    assert answers.dtype == np.float64
    assert regressor.score(StandardScaler().fit_transform(features), y) > 0.4
    scores = regressor.layer_scores(StandardScaler().fit_transform(features), y)
    assert list(scores) == ["hidden1", "hidden2", "output"]
    assert min(scores.values()) > 0.3


def test_a_constant_target_is_predicted():
    regressor = LocalRegressor(hidden_layer_sizes=(8,), random_state=0, epochs=20, learning_rate=0.02)
    assert np.allclose(regressor.fit(X, np.full(len(X), 7.0)).predict(X), 7, atol=0.5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "dcl-x"}, "no method 'dcl-x' .did you mean 'dcl-"),
        ({"method": 5}, "method: must be a name, got 5"),
        ({"method": "dgl-image"}, "needs images of shape"),
        ({"method_settings": {"temprature": 1}}, "temprature: not a setting of method 'dcl'"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes: must be the widths"),
        ({"hidden_layer_sizes": 64}, "hidden_layer_sizes: must be the widths .* got 64"),
        ({"hidden_layer_sizes": (64, 0)}, "hidden_layer_sizes: must be the widths"),
        ({"hidden_layer_sizes": "ab"}, "hidden_layer_sizes: must be the widths"),
        ({"image_shape": 13}, "image_shape: must be .channels, height, width., got 13"),
        ({"image_shape": (1, -1, -13)}, "image_shape: must be .channels, height, width., got"),
        ({"method_settings": ["temperature"]}, "method_settings: must be a mapping"),
        ({"network": "vgg8b"}, "network: must be a function .* got 'vgg8b'"),
        ({"network": lambda shape, outputs: None}, "network: must return an nn.Module, got a NoneType"),
        ({"epochs": 0}, "epochs: must be a whole number from 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: must be a whole number from 1, got 2.5"),
        ({"learning_rate": 0}, "learning_rate: must be positive and finite, got 0"),
        ({"learning_rate": "fast"}, "learning_rate: must be positive and finite, got 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate: must be positive and finite, got nan"),
    ],
)
def test_mistakes_are_told(parameters, message):
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(X, Y)


def test_a_regressor_refuses_methods_for_classes():
    with pytest.raises(ValueError, match="method: 'dcl' takes classes alone, not real numbers; choose regression"):
        LocalRegressor("dcl").fit(X, Y)
    with pytest.raises(ValueError, match="y: the targets are too large"):
        LocalRegressor().fit(X, Y * 1e300)


def test_training_that_diverges_is_told():
    with pytest.raises(RuntimeError, match=r"is not finite after training; scale the inputs, or lower"):
        quick(method="regression", learning_rate=1e30, epochs=8).fit(X, Y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)  # what Python does with a package that is not there
    monkeypatch.delitem(sys.modules, "localprop.integrations.sklearn")
    with pytest.raises(ImportError, match=r"pip install 'localprop\[sklearn\]'"):
        importlib.import_module("localprop.integrations.sklearn")


def test_iris_with_column_names_remembers_them():
    frame = pytest.importorskip("pandas")
    features, labels = load_iris(return_X_y=True)
    table = frame.DataFrame(features, columns=["a", "b", "c", "d"])
    fitted = quick().fit(table, labels)
    assert list(fitted.feature_names_in_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(table.rename(columns={"a": "z"}))
