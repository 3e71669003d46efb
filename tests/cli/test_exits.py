"""exits, as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from localprop.cli import main
from localprop.train import checkpoint
from localprop.train import exits as command

TINY = ["--model", "conv", "--model.width", "0.25", "--batch-size", "64", "--threads", "1", "--limit-batches", "3"]
Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(command, "TIMED_IMAGES", 48)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    def train_once(method: str, *words: str) -> Path:
        directory = tmp_path_factory.mktemp("exits") / "run"
        assert main(["train", "--method", method, *TINY, "--epochs", "1", *words, "--out", str(directory)]) == 0
        return directory

    return train_once


@pytest.fixture(scope="module")
def run(train: Train) -> Path:
    return train("pred", "--validation", "0.1")


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["exits", *words, "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads((Path(words[0]) / "exits.json").read_text()) == content
    return content


def test_exits__measures_blocks_thresholds_and_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    content = found(capsys, str(run), "--max-error-increase", "5")
    assert torch.get_num_threads() == threads
    final = json.loads((run / "final.json").read_text())
    assert content["whole"]["test_error"] == final["test_error"]
    assert content["whole"]["throughput_ratio"] == 1.0
    assert content["whole"]["threshold"] is None
    assert [row["error"] for row in content["blocks"]] == final["layer_errors"]
    assert [row["block"] for row in content["blocks"]] == ["conv1", "conv2", "classifier"]
    assert content["blocks"][-1]["agreement"] == content["blocks"][-1]["stays_right"] == 100
    assert sum(row["share"] for row in content["agreements"]) == pytest.approx(100)
    assert content["validation_images"] == content["test_images"] == 192
    flops = [row["flops"] for row in content["blocks"]]
    assert flops == sorted(flops)
    assert content["chosen"]["validation_error"] <= content["whole"]["validation_error"] + 5
    assert content["chosen"]["flops"] <= content["whole"]["flops"]
    first, *_, last = content["sweep"]
    assert (first["threshold"], first["shares"]) == (0.0, [1.0, 0.0, 0.0])
    assert first["flops"] == flops[0] < last["flops"] <= flops[-1]
    for row in [content["chosen"], content["whole"], *content["sweep"]]:
        assert sum(row["shares"]) == pytest.approx(1)
        assert row["images_per_second"] == pytest.approx(48 / row["batch_seconds"])  # one batch holds all of them
        low, high = row["throughput_ratio_spread"]
        assert 0 < low <= row["throughput_ratio"] <= high


@pytest.mark.parametrize("measure", ["margin", pytest.param("entropy", marks=pytest.mark.slow)])
def test_exits__by_another_measure_one_image_a_batch(
    run: Path, capsys: pytest.CaptureFixture[str], measure: str
) -> None:
    content = found(capsys, str(run), "--by", measure, "--batch-size", "1")
    assert (content["by"], content["batch_size"]) == (measure, 1)
    assert content["validation_images"] == 192  # those of the run, whatever the batches that are timed


def test_exits__prints_tables_and_draws(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["exits", str(run), "--picture", str(tmp_path / "exits.png")]) == 0
    shown = capsys.readouterr().out
    for word in ("conv1", "classifier", "agreement", "ECE", "whole", "chosen", "throughput"):
        assert word in shown
    assert Image.open(tmp_path / "exits.png").size[0] > 900


def test_exits__prints_what_it_cannot_store(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    (directory / "exits.json").unlink(missing_ok=True)
    (directory / "exits.json").mkdir()
    capsys.readouterr()
    assert main(["exits", str(directory), "--json"]) == 3
    out, error = capsys.readouterr()
    assert json.loads(out)["method"] == "pred"
    assert f"cannot write {directory / 'exits.json'}" in error
    assert not list(directory.glob(".exits.json*"))


def test_exits__answers_together(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    directory = train("cafo-ce", "--validation", "0.1")
    content = found(capsys, str(directory))
    assert content["whole"]["test_error"] == json.loads((directory / "final.json").read_text())["test_error"]
    assert content["whole"]["flops"] == content["blocks"][-1]["flops"]


def test_exits__refuses_methods_that_have_none(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", str(train("bp", "--validation", "0.1"))]) == 2
    error = capsys.readouterr().err
    assert "method bp: Backprop cannot exit early: hidden blocks make no prediction" in error
    assert "such as pred" in error


def test_exits__refuses_a_run_that_held_nothing_out(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", str(train("pred"))]) == 2
    assert "train again with --validation 0.1" in capsys.readouterr().err


def test_exits__refuses_a_diverged_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    directory = tmp_path / "diverged"
    shutil.copytree(run, directory)
    newest = checkpoint.newest(directory / "checkpoint")
    assert newest is not None
    state = dict(checkpoint.load(newest))
    state["rule"]["net.blocks.1.0.weight"].fill_(torch.nan)
    checkpoint.save(directory / "checkpoint", state, step=int(state["step"]) + 1, keep=1)
    assert main(["exits", str(directory)]) == 2
    assert "block conv2: logits: must be finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--by", "luck"], "--by luck: must be one of confidence, margin, entropy"),
        (["--max-error-increase", "-1"], "--max-error-increase -1.0: must be 0 or more"),
        (["--max-error-increase", "nan"], "--max-error-increase nan: must be 0 or more"),
        (["--max-error-increase", "much"], "--max-error-increase"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--picture", "exits.txt"], "must end in .png or .svg"),
        (["--picture", "nowhere/exits.png"], "there is no directory nowhere"),
        (["--threshold"], "localprop exits does not take this"),
    ],
)
def test_exits__mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    capsys.readouterr()
    assert main(["exits", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_exits__needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", "nowhere"]) == 2
    assert "not a run" in capsys.readouterr().err
