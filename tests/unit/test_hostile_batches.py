"""Batches, cuts and settings that cannot work are refused in words that say what to do."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import localprop
from localprop.train import checkpoint
from localprop.train.config import config_from
from localprop.train.fit import TrainingError, fit
from localprop.types import Normalisation
from tests.traits import accepting, traits

METHODS = list(localprop.methods.CATALOGUE)
SHAPE = (1, 12, 12)
CLASSES = 3
IMAGES = Normalisation((0.5,), (0.05,))
X, Y = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def _threads():
    """Give back the threads that a run with `threads` sets for the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def build(method: str = "dcl", **settings: object) -> localprop.Rule:
    own = traits(method).model
    net = localprop.models.get(own or "conv")(SHAPE, CLASSES, width=0.0625)
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=X, **settings)
    rule.normalisation = IMAGES
    return rule


HOSTILE = {
    "label too large": (X, torch.tensor([0, 1, 3, 0]), r"labels must lie in 0 \.\. 2 \(3 classes\), got 3"),
    "negative label": (X, torch.tensor([0, -100, 2, 0]), r"labels must lie in 0 \.\. 2 \(3 classes\), got -100"),
    "float labels": (X, Y.float(), r"y: need .*int64 class ind(ex|ices) .*shape \(4,\), got torch\.float32"),
    "int32 labels": (X, Y.int(), "int64.*got torch.int32"),
    "one-hot labels": (X, nn.functional.one_hot(Y), r"shape \(4,\), got torch\.int64 of shape \(4, 3\)"),
    "too few labels": (X, Y[:3], r"shape \(4,\), got torch\.int64 of shape \(3,\)"),
    "wrong channel count": (X.repeat(1, 3, 1, 1), Y, r"takes samples of shape \(1, 12, 12\), got.*\(4, 3, 12, 12\)"),
    "wrong image size": (X[..., :8], Y, r"takes samples of shape \(1, 12, 12\), got.*\(4, 1, 12, 8\)"),
    "no batch axis": (X[0], Y[:1], r"takes samples of shape \(1, 12, 12\)"),
    "an array": (X.numpy(), Y, r"x: need a batch of inputs as a tensor, got a ndarray"),
    "truth values": (X > 0, Y, r"x: no network computes with torch\.bool"),
    "complex numbers": (X + 0j, Y, r"x: no network computes with torch\.complex64"),
    "empty batch": (X[:0], Y[:0], "the batch is empty"),
    "batch of one": (X[:1], Y[:1], "batch normalisation cannot train on a batch of one sample; use at least two"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("x", "y", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_batch_that_does_not_fit_is_refused_before_anything_changes(method: str, x: Tensor, y: Tensor, message: str):
    rule = build(method)
    if traits(method).own_network and "batch normalisation" in message:
        pytest.skip("its network has no batch normalisation")
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        next(iter(rule.steps(x, y)))
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())
    assert all(p.grad is None for p in rule.parameters())


def test_a_batch_of_one_is_fine_without_batch_normalisation():
    net = localprop.models.fc(SHAPE, CLASSES, hidden=16)
    for method in accepting("flat"):
        rule = localprop.methods.build(method, net, num_classes=CLASSES, example=X)
        if any(isinstance(module, _BatchNorm) for module in rule.modules()):  # in a network beside this one
            with pytest.raises(ValueError, match="batch normalisation cannot train on a batch of one sample"):
                next(rule.steps(X[:1], Y[:1]))
            continue
        rule.normalisation = IMAGES
        for step in rule.steps(X[:1], Y[:1]):
            assert step.loss is None or bool(step.loss.isfinite())
            rule.clear_gradients()


def test_a_batch_of_one_is_predicted_with_batch_normalisation():
    rule = build().eval()
    assert rule.predict(X[:1]).shape == (1, CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one_class_trains(method: str):
    rule = build(method)
    for step in rule.steps(X, torch.ones(4, dtype=torch.int64)):
        assert step.loss is None or bool(step.loss.isfinite())
        for parameter in rule.parameter_groups()[step.key]:
            assert bool(parameter.grad.isfinite().all())
            parameter.grad = None


@pytest.mark.parametrize("method", [name for name in METHODS if traits(name).takes_steps])
def test_a_pixel_that_is_not_a_number_shows_in_the_loss(method: str):
    rule = build(method)
    x = X.clone()
    x[0, 0, 5, 5] = torch.nan
    losses = (step.loss for step in rule.steps(x, Y) if step.loss is not None)
    assert not bool(next(losses).isfinite())


def test_a_model_that_is_not_split_is_refused_with_the_way_to_do_it():
    with pytest.raises(ValueError, match=r"net: need the network as blocks, got Sequential; use localprop\.split"):
        localprop.methods.build("dcl", nn.Sequential(nn.Linear(4, 3)), num_classes=3, example=torch.zeros(2, 4))


def test_a_network_of_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes: need at least 2 classes to tell apart, got 1"):
        localprop.methods.build("dcl", localprop.LocalNetwork([nn.Linear(4, 1)]), num_classes=1, example=X)


def chain() -> nn.Sequential:
    features = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
    return nn.Sequential(features, nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("model", "at", "message"),
    [
        (chain(), ["0.3"], r"at: no module '0\.3' to cut after \(did you mean '0\.[0-2]'\?\); the names are \['0\.0'"),
        (chain(), ["fc"], r"at: no module 'fc' to cut after; the names are \["),
        (chain(), ["0.0", "0.1"], r"block '0\.1' \(ReLU\) has no parameters.*join it to the block before it"),
        (nn.Sequential(nn.ReLU()), None, "no parameters"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(model: nn.Module, at: list[str] | None, message: str):
    with pytest.raises(ValueError, match=message):
        localprop.split(model, at)


def test_a_network_that_does_not_fit_its_example_or_classes_is_refused():
    net = localprop.split(chain())
    with pytest.raises(ValueError, match=r"num_classes: the last block must give 5 logits a sample, got.*3"):
        localprop.methods.build("dcl", net, num_classes=5, example=torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"example: block '1' cannot run .* of shape \(1, 9\)"):
        localprop.methods.build("dcl", net, num_classes=3, example=torch.zeros(1, 9))
    assert all(module.training for module in net.modules())


def test_a_flat_width_that_the_chunks_do_not_divide_is_refused():
    net = localprop.split(nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3)))
    with pytest.raises(ValueError, match="chunks: must divide the width 10 of block '1', got 4"):
        localprop.methods.build("dcl", net, num_classes=3, example=torch.zeros(1, 8), chunks=4)
    with pytest.raises(ValueError, match="chunks: must divide the hidden width 64, got 7; choose another"):
        localprop.models.fc(SHAPE, CLASSES, hidden=64, chunks=7)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("dcl", {"temperatur": 1.0}, r"not a setting of method 'dcl' \(did you mean 'temperature'\?\)"),
        ("dcl", {"update": "none"}, "update: not a setting of method 'dcl'"),
        ("bp", {"temperature": 1.0}, "temperature: not a setting of method 'bp'; it has none"),
        ("pred", {"budget": 10}, r"did you mean 'feature_budget'\?"),
        ("dcl", {"temperature": 0.0}, r"temperature: must be positive and finite, got 0\.0"),
        ("dcl", {"temperature": float("nan")}, "temperature: must be positive and finite, got nan"),
        ("feat", {"temperature": -1.0}, r"temperature: must be positive and finite, got -1\.0"),
        ("dcl", {"similarity": "euclidean"}, "similarity: must be 'dot' or 'cosine', got 'euclidean'"),
        ("dcl", {"reduction": "mean"}, "reduction: must be 'logsumexp' or 'max', got 'mean'"),
        ("dcl", {"projection": "conv"}, "projection: must be 'pool', 'label' or 'feature', got 'conv'"),
        ("dcl", {"initialisation": "zeros"}, "initialisation: must be 'normal' or 'orthogonal', got 'zeros'"),
        ("dcl", {"embeddings_per_class": 0}, "embeddings_per_class: must be at least 1, got 0"),
        ("dcl", {"dictionary_width": 0}, "dictionary_width: must be at least 1, got 0"),
        ("dcl", {"embedding_norm": 4.0}, "embedding_norm: .*goes with initialisation='orthogonal'"),
        (
            "dcl",
            {"initialisation": "orthogonal", "dictionary_width": 2},
            "3 embeddings cannot be orthogonal in 2 dimensions; use 'normal', or a larger dictionary_width",
        ),
        ("pred", {"feature_budget": 0}, "feature_budget: must be at least 1, got 0"),
    ],
)
def test_settings_out_of_their_range_are_refused(method: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(method, **settings)


def test_a_method_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"no method 'dcl-avg' \(did you mean 'dcl-averaged'\?\); there are bp, dcl"):
        localprop.methods.get("dcl-avg")
    with pytest.raises(ValueError, match=r"no network 'vgg8' \(did you mean 'vgg8b'\?\); there are fc, mlp, conv"):
        localprop.models.get("vgg8")


SMALL = {"model": "fc", "model.hidden": 32, "limit_batches": 3, "threads": 1, "device": "cpu", "log_every": 1}


@pytest.mark.parametrize(("method", "block"), [("dcl", r"block \d \(\w+\)"), ("bp", "the network")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_block_and_step(tmp_path: Path, method: str, block: str):
    config = config_from({**SMALL, "method": method, "optimizer.lr": 1e30})
    with pytest.raises(TrainingError) as caught:
        fit(config, tmp_path / "run", stream=io.StringIO())
    message = str(caught.value)
    assert re.match(rf"the loss of {block} is (nan|inf) at step [12]; no checkpoint was written yet\.", message), (
        message
    )
    assert "smaller --optimizer.lr" in message
    assert "--clip-norm" in message
    assert not (tmp_path / "run" / "final.json").exists()


def test_the_last_good_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "spiking.py").write_text("def spike():\n    return lambda progress: 1.0 if progress < 0.5 else 1e38\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {**SMALL, "schedule": "spiking:spike", "epochs": 2, "checkpoint_every": 1, "keep": 10}
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        fit(config_from(settings), run, stream=io.StringIO())
    kept = checkpoint.newest(run / "checkpoint")
    assert kept is not None
    assert f"the last good checkpoint is {kept}" in str(caught.value)
    state = checkpoint.load(kept)
    assert 3 <= state["step"] <= 4  # the rate explodes at step 3 of 6
    assert all(bool(v.isfinite().all()) for v in state["rule"].values() if v.is_floating_point())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows if row["kind"] == "block")
