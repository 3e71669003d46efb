"""A run goes on from another's weights, warms up by backprop, and leaves frozen blocks as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from localprop.cli import main
from localprop.train import checkpoint
from tests.cli.processes import KILLED, Server, assert_same_end

SMALL = [
    *("--model", "conv", "--model.width", "0.0625", "--data", "fashion-mini", "--batch-size", "32", "--epochs", "1"),
    *("--limit-batches", "4", "--threads", "1", "--device", "cpu"),
]


def train(*flags: object) -> int:
    return main(["train", *SMALL, *map(str, flags)])


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run / "checkpoint")
    assert newest is not None
    return {name: value for name, value in checkpoint.load(newest)["rule"].items() if name.startswith("net.")}


def moved(run: Path, other: Path) -> set[str]:
    """Return the blocks in which two runs differ."""
    left, right = weights(run), weights(other)
    assert left.keys() == right.keys()
    return {name.split(".")[2] for name, value in left.items() if not torch.equal(value, right[name])}


@pytest.fixture(scope="module")
def backprop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "bp"
    assert train("--method", "bp", "--out", run) == 0
    return run


def test_a_local_method_goes_on_from_backprop_and_the_other_way(backprop: Path, tmp_path: Path, capsys):
    local, back = tmp_path / "local", tmp_path / "back"
    assert train("--method", "dcl", "--weights", backprop, "--freeze", "conv1", "--out", local) == 0
    assert "weights: 16 of 16 tensors" in capsys.readouterr().err
    assert moved(local, backprop) == {"1", "2"}
    assert train("--method", "bp", "--weights", local, "--freeze", "conv2,2", "--out", back) == 0
    assert moved(back, local) == {"0"}


@pytest.mark.slow
def test_weights_are_read_once_and_a_resumed_run_needs_them_no_more(backprop: Path, tmp_path: Path):
    copy, run = tmp_path / "copy", tmp_path / "run"
    backprop.rename(copy)
    flags = ["--method", "pred", "--weights", copy, "--checkpoint-every", 2, "--out"]
    try:
        assert train(*flags, tmp_path / "undisturbed") == 0
        with Server(tmp_path) as server:
            argv = ["train", *SMALL, *flags, run, "--resume", "auto"]
            assert server.run(*argv, event=("in_write", 2, "after replace")).code == KILLED
            copy.rename(backprop)
            assert server.run(*argv).code == 0
    finally:
        if copy.exists():
            copy.rename(backprop)
    assert_same_end(run, tmp_path / "undisturbed")


def test_a_warm_up_is_a_run_of_backprop_whose_weights_the_method_starts_from(tmp_path: Path):
    warmed = tmp_path / "warmed"
    assert train("--method", "dcl", "--warmup-epochs", 2, "--freeze", "classifier", "--out", warmed) == 0
    warm_up = json.loads((warmed / "warm-up" / "final.json").read_text())
    final = json.loads((warmed / "final.json").read_text())
    assert (warm_up["method"], warm_up["epochs"]) == ("bp", 2)
    assert (final["method"], final["epochs"], final["warmup_seconds"]) == ("dcl", 1, warm_up["train_seconds"])
    again = tmp_path / "again"
    start = ["--weights", warmed / "warm-up", "--freeze", "classifier", "--out", again]
    assert train("--method", "dcl", *start) == 0
    assert not moved(warmed, again)
    assert moved(warmed, warmed / "warm-up") == {"0", "1"}
    assert main(["evaluate", str(warmed)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [
        ("in_row", 2),
        ("in_write", 1, "before replace"),
        ("in_replacing", "final.json"),
        ("in_write", 1, "after replace"),
    ],
)
def test_a_run_killed_in_its_warm_up_goes_on_in_it(event: tuple[object, ...], tmp_path: Path):
    argv = ["train", *SMALL, "--method", "dcl", "--warmup-epochs", 2, "--out"]
    with Server(tmp_path) as server:
        assert server.run(*argv, tmp_path / "undisturbed").code == 0
        again = [*argv, tmp_path / "run", "--resume", "auto"]
        assert server.run(*again, event=event).code == KILLED
        assert not (tmp_path / "run" / "checkpoint").exists()
        assert server.run(*again).code == 0
    for name in (".", "warm-up"):
        assert_same_end(tmp_path / "run" / name, tmp_path / "undisturbed" / name)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--weights", "nowhere"], "--weights nowhere: no such run or file"),
        (["--weights", "pretrained"], "there are no pretrained weights of conv"),
        (["--freeze", "conv9"], "--freeze: no block 'conv9' (did you mean"),
        (["--freeze", "0,1,2"], "--freeze: all blocks are frozen"),
        (["--warmup-epochs", "0"], "--warmup-epochs 0: must be greater than or equal to 1"),
        (["--warmup-epochs", "1", "--method", "last-block"], "it cannot start from weights"),
        (["--warmup-epochs", "1", "--method.embeddings-per-class", "-1"], "--method.embeddings-per-class -1: must"),
    ],
)
def test_mistakes_end_with_one_message_and_leave_nothing(flags: list[str], told: str, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert train(*flags, "--out", run) == 2
    assert told in capsys.readouterr().err
    assert not run.exists() or not any(run.iterdir())


def test_weights_of_another_network_are_refused(backprop: Path, tmp_path: Path, capsys):
    assert train("--weights", backprop, "--model.width", 0.125, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"--weights {backprop}: they are of another network" in error
    assert error.count("error:") == 1


OWN_MODEL = """
from torch import nn

def net(image_shape, num_classes):
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU()), nn.Linear(16, num_classes))
"""


def test_a_model_by_import_path_warms_up_and_gives_its_weights_only_with_leave(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "own_model_of_weights.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["train", "--model", "own_model_of_weights:net", *SMALL[4:], "--method", "pred"]
    assert main([*own, "--warmup-epochs", "1", "--out", "warmed"]) == 0
    assert main([*own, "--weights", "warmed", "--out", "refused"]) == 2
    assert "only with --allow-imports" in capsys.readouterr().err
    assert main([*own, "--weights", "warmed", "--allow-imports", "--out", "taken"]) == 0
    assert "weights: 4 of 4 tensors" in capsys.readouterr().err
