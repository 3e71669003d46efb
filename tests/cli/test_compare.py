"""compare, evaluate and predict, as a user runs them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import localprop
from localprop.bench import subjects
from localprop.bench.cost import step_rows
from localprop.bench.measure import time_row, time_steps
from localprop.cli import main
from localprop.train import checkpoint
from localprop.train.assemble import DataFacts
from localprop.train.compare import compare
from localprop.train.config import RunConfig, config_from
from localprop.train.errors import Interrupted, TrainingError
from localprop.train.fit import fit

TINY = ["--model", "conv", "--model.width", "0.25", "--batch-size", "64", "--threads", "1"]


def localprop_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localprop", *words]
    source = str(Path(localprop.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    cwd = tmp_path_factory.mktemp("compare")
    words = ["--methods", "bp,dcl", *TINY, "--epochs", "2", "--limit-batches", "3", "--seeds", "2", "--out", "both"]
    return cwd / "both", localprop_command("compare", *words, cwd=cwd)


def test_compare__makes_table_and_picture(comparison: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, done = comparison
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = {row["method"]: row for row in json.loads((directory / "comparison.json").read_text())["rows"]}
    assert set(rows) == {"bp", "dcl"}
    finals = [json.loads((directory / "dcl" / f"seed-{seed}" / "final.json").read_text()) for seed in (0, 1)]
    mean = sum(final["test_error"] for final in finals) / 2
    assert rows["dcl"]["test_error"]["mean"] == pytest.approx(mean)
    assert rows["dcl"]["test_error"]["std"] is not None
    assert rows["dcl"]["extra_parameters"] == 10 * 64  # conv at a quarter of its width: 64 channels at most
    assert 0.1 < rows["bp"]["step_ratio"] < 10
    assert rows["dcl"]["memory_ratio"] > 0
    assert "dcl" in done.stdout
    assert "dcl" in (directory / "comparison.md").read_text()
    assert Image.open(directory / "comparison.png").size[0] > 900


@pytest.mark.slow
def test_compare__resumes_without_training_again(comparison: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    directory, _ = comparison
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*/seed-*/*.json")}
    for name in (".comparison.md.tmp-1", "dcl/.cost.json.tmp-1"):  # left by a kill
        (directory / name).touch()
    words = ["--methods", "bp,dcl", *TINY, "--epochs", "2", "--limit-batches", "3", "--seeds", "2", "--out", "both"]
    refused = localprop_command("compare", *words, cwd=directory.parent)
    assert refused.returncode == 2
    assert "--resume auto" in refused.stderr
    again = localprop_command("compare", *words, "--resume", "auto", cwd=directory.parent)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/seed-*/*.json")} == before


def test_evaluate__repeats_the_final_numbers(
    comparison: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = comparison[0] / "dcl" / "seed-0"
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    final = json.loads((run / "final.json").read_text())
    assert found["test_error"] == final["test_error"]
    assert found["layer_errors"] == final["layer_errors"]
    assert found["ensemble_errors"] == final["ensemble_errors"]


@pytest.mark.parametrize(("mode", "size"), [("L", (28, 28)), ("RGBA", (301, 17)), ("P", (64, 64)), ("1", (10, 200))])
def test_predict__takes_any_image(
    comparison: tuple[Path, subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    mode: str,
    size: tuple[int, int],
) -> None:
    file = tmp_path / "image.png"
    Image.effect_noise(size, 80).convert(mode).save(file)
    assert main(["predict", str(comparison[0] / "dcl" / "seed-0"), str(file), "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "classifier", "ensemble (uniform)", "network"]
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["class"] in localprop.data.CATALOGUE["fashion-mini"].class_names


def test_predict__agrees_with_the_evaluation(
    comparison: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = localprop.data.load("fashion-mini")
    files = []
    for number in range(20):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(images.test.images[number, 0].numpy()).save(files[-1])
    run = comparison[0] / "bp" / "seed-0"
    assert main(["predict", str(run), *files, "--json"]) == 0
    said = [row["class"] for row in json.loads(capsys.readouterr().out) if row["layer"] == "network"]
    from localprop.train.stored import load_run

    stored = load_run(run)
    x = localprop.data.normalise(images.test.images[:20], stored.facts.mean, stored.facts.std)
    assert said == [images.class_names[int(index)] for index in stored.rule.predict(x).argmax(1)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "nowhere"], "not a run"),
        (["predict", "{run}", "missing.png"], "missing.png"),
        (["predict", "{run}", "{run}/final.json"], "final.json"),
    ],
)
def test_use__mistakes_are_one_line(
    comparison: tuple[Path, subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    run = str(comparison[0] / "dcl" / "seed-0")
    assert main([word.replace("{run}", run) for word in words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {"class_names": 5}},
        {"data": {"class_names": "ab", "image_shape": "x", "mean": [0.5], "std": [0.5]}},
        {"data": {"class_names": "ab", "image_shape": [1, 28, 28], "mean": [0.5], "std": None}},
        {"rule": [1]},
        {"rule": {"a": 1}},
        {"step": None},
    ],
)
def test_use__a_checkpoint_of_another_kind_is_one_line(
    comparison: tuple[Path, subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    tmp_path: Path,
) -> None:
    run = Path(shutil.copytree(comparison[0] / "dcl" / "seed-0", tmp_path / "run"))
    newest = checkpoint.newest(run / "checkpoint")
    assert newest is not None
    checkpoint.save(newest.parent, {**checkpoint.load(newest), **change}, step=6, keep=1)
    assert main(["evaluate", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{newest}: does not fit {run / 'config.yaml'}" in line


def test_cost__a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    facts = DataFacts(tuple("0123456789"), (1, 28, 28), (0.5,), (0.5,))
    with pytest.raises(TrainingError, match=r"measuring bp \(step\) ended with exit code 1 and said: nothing"):
        step_rows([config_from({"method": "bp", "model": "conv"})], facts, seconds=0)


def test_cost__methods_that_draw_the_image_are_measured() -> None:
    torch.set_num_threads(1)
    config = config_from({"method": "contrec", "model": "conv", "model.width": "0.0625", "batch_size": "4"})
    facts = DataFacts(tuple("0123456789"), (1, 28, 28), (0.3,), (0.2,))
    own, backprop = subjects.method(config, facts), subjects.baseline("bp", config, facts)
    assert time_row(*time_steps([own, backprop], seconds=0, rounds=(2, 2)))["step_ratio"] > 0


def test_cost__backprops_memory_is_that_at_the_methods_own_batch_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Methods may bring a batch size: what backprop took with another one is no measure for them."""
    known, taken = [], []

    def measured(config: RunConfig, facts: DataFacts, *, backprop: dict[str, int]) -> dict[str, Any]:
        known.append((config.method.name, backprop["peak_memory_bytes"]))
        row: dict[str, Any] = {"method": config.method.name, "model": "fc", "width": 0.0625, "precision": "fp32"}
        row |= {"step_seconds": 1.0, "backprop_step_seconds": 1.0, "step_ratio": 1.0, "step_ratio_spread": [1.0, 1.0]}
        row |= {"threads": 1, "pairs": 7, "batch_size": config.batch_size, "peak_memory_bytes": 1, "memory_ratio": 1.0}
        return {**row, "backprop_peak_memory_bytes": backprop["peak_memory_bytes"]}

    def memory_of(what: str, config: RunConfig, facts: DataFacts) -> dict[str, int]:
        taken.append(config.batch_size)
        return {"peak_memory_bytes": config.batch_size}

    module = "localprop.train.compare"
    monkeypatch.setattr(f"{module}._train", lambda config, out: fit(config, out, resume=True, stream=io.StringIO()))
    monkeypatch.setattr(f"{module}.measure", measured)
    monkeypatch.setattr(f"{module}.memory_of", memory_of)
    tiny = {"model": "fc", "model.width": "0.0625", "model.chunks": "8", "epochs": "1", "limit_batches": "1"}
    configs = [
        config_from({**tiny, "method": method, "batch_size": size})
        for method, size in (("bp", "8"), ("dcl", "8"), ("dcl-s", "4"))
    ]
    compare(configs, tmp_path / "out", seeds=range(1), stream=io.StringIO())
    assert known == [("bp", 8), ("dcl", 8), ("dcl-s", 4)]
    assert taken == [8, 4]


@pytest.mark.parametrize(
    ("damage", "words", "expected"),
    [
        (lambda out: None, ["--optimizer.lr", "0.1"], "optimizer.lr is 0.1, was 0.0075"),
        (lambda out: (out / "notes.txt").touch(), [], "not a comparison of localprop (notes.txt lies in it)"),
        (lambda out: (out / "photos").mkdir() or (out / "photos" / "1.png").touch(), [], "(photos lies in it)"),
        (lambda out: (out / "bp/seed-0/final.json").write_text("{"), [], "bp/seed-0: its files are not those of a run"),
        (lambda out: (out / "bp/cost.json").write_text("{"), [], "delete it to measure again"),
    ],
    ids=["settings", "file", "directory", "result", "cost"],
)
def test_compare__goes_on_with_nothing_but_its_own(
    comparison: tuple[Path, subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: list[str],
    expected: str,
    tmp_path: Path,
) -> None:
    out = Path(shutil.copytree(comparison[0], tmp_path / "both"))
    damage(out)
    same = ["--methods", "bp,dcl", *TINY, "--epochs", "2", "--limit-batches", "3", "--seeds", "2", "--resume", "auto"]
    assert main(["compare", *same, *words, "--out", str(out)]) == 2
    assert expected in capsys.readouterr().err


def test_compare__goes_on_beside_a_report(
    comparison: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(comparison[0], tmp_path / "both"))
    assert main(["report", str(out), "--out", str(out / "page.html")]) == 0
    same = ["--methods", "bp,dcl", *TINY, "--epochs", "2", "--limit-batches", "3", "--seeds", "2", "--resume", "auto"]
    assert main(["compare", *same, "--out", str(out)]) == 0


def test_compare__a_signal_is_not_lost_where_the_run_under_way_ends_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run, replaced by one that ignores SIGTERM and succeeds, is followed by no second one."""
    started = tmp_path / "started"
    deaf = f"import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(started)!r}).touch()"
    runs = []
    popen = subprocess.Popen

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        runs.append(command)
        process = popen([sys.executable, "-c", f"{deaf}; time.sleep(0.3)"])
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    configs = [config_from({"method": method, "model": "fc"}) for method in ("bp", "dcl")]
    with pytest.raises(Interrupted, match="--resume auto"):
        compare(configs, tmp_path / "out", seeds=range(1))
    assert len(runs) == 1
