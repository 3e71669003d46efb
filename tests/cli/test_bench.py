"""Benchmarks: what they measure, and the command's contracts."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from localprop.bench import subjects
from localprop.bench.cost import facts_of
from localprop.bench.depth import depth_rows, residual_network
from localprop.bench.live import LiveTensors
from localprop.bench.measure import Timing, measure_memory, time_row, time_steps
from localprop.cli import main
from localprop.train.assemble import DataFacts
from localprop.train.config import RunConfig, config_from

FACTS = DataFacts(tuple("0123456789"), (1, 28, 28), (0.5,), (0.5,))
MIB = 2**20
TINY = ["--model", "vgg8b", "--model.width", "0.0625", "--data", "fashion-mini", "--batch-size", "8"]


def config(method: str, **flags: str) -> RunConfig:
    return config_from({"method": method, "model": "vgg8b", "model.width": "0.0625", "batch_size": "8", **flags})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_live_tensors_counts_storages_once_and_as_long_as_they_live() -> None:
    weight, x = nn.Parameter(torch.randn(1000, 1000)), torch.randn(100, 1000)
    with LiveTensors([weight, x]) as live:
        h = x @ weight.T
        assert live.now_bytes == 4 * 100 * 1000
        view = h.view(-1)[3:]
        del h
        assert live.now_bytes == 4 * 100 * 1000
        loss = view.sum()
        del view
        loss.backward()
        del loss
        assert live.now_bytes == 4 * 1000 * 1000  # the gradient
        live.kept_bytes = live.now_bytes
        weight.grad = None
        assert live.now_bytes == 0
        x.mul_(2)  # in place: nothing new
        assert live.now_bytes == 0
    assert live.peak_bytes >= 4 * (100 * 1000 + 1000 * 1000)
    assert 0 < live.peak_beyond_kept_bytes <= live.peak_bytes


def test_time_row__ratios_are_of_the_same_round() -> None:
    row = time_row(Timing("own", (1.0, 4.0, 9.0), 20.0), Timing("bp", (2.0, 4.0, 10.0), 30.0))
    assert (row["step_seconds"], row["backprop_step_seconds"], row["pairs"]) == (4.0, 4.0, 3)
    assert row["step_ratio"] == 0.9
    assert row["floor_ratio"] == pytest.approx(2 / 3)
    assert row["step_ratio_to_floor"] == pytest.approx(1.35)


@pytest.mark.parametrize("name", subjects.BASELINES)
def test_every_baseline_takes_the_step_of_backprop(name: str) -> None:
    still = config("bp", **{"model.dropout": "0", "optimizer": "SGD", "optimizer.lr": "0.1"})
    own, plain = (subjects.baseline(which, still, FACTS) for which in (name, "bp"))
    before = [parameter.detach().clone() for parameter in plain.module.parameters()]
    for subject in (own, plain):
        ((share, step),) = subject.start()
        assert share == 1.0
        step()
    moved, expected = (
        torch.cat([(p - q).flatten() for p, q in zip(subject.module.parameters(), before, strict=True)])
        for subject in (own, plain)
    )
    # Another rounding lets some ReLU and maximum choose otherwise, in float32 as in bfloat16.
    tolerance = {"bp-bf16": 0.3, "bp-fused": 0.05}.get(name, 1e-6)
    assert torch.linalg.norm(moved - expected) < tolerance * torch.linalg.norm(expected)


def test_baselines_do_the_arithmetic_and_keep_the_memory_that_their_names_say() -> None:
    names = ["bp", "bp-checkpoint", "bp-sqrt", "bp-fused"]
    built = [subjects.baseline(name, config("bp"), FACTS) for name in names]
    timings = dict(zip(names, time_steps(built, seconds=0, rounds=(2, 2)), strict=True))
    assert timings["bp-fused"].flops == timings["bp"].flops
    for name in ("bp-checkpoint", "bp-sqrt"):
        assert 1.3 < timings[name].flops / timings["bp"].flops <= 4 / 3 + 0.02  # one forward pass more
    live = {
        name: measure_memory(subjects.baseline(name, config("bp", batch_size="64"), FACTS))["live_tensor_bytes"]
        for name in names
    }
    assert live["bp-checkpoint"] < live["bp-sqrt"] < live["bp"]
    assert live["bp-fused"] < live["bp"]


def test_images_have_the_size_that_a_network_of_another_library_declares() -> None:
    flags = {"method": "dcl", "model": "timm:test_vit", "at": "blocks", "data": "fashion-mini"}
    assert facts_of(config_from(flags)).image_shape == (1, 160, 160)
    assert facts_of(config_from({**flags, "image_size": "96"})).image_shape == (1, 96, 96)


def test_the_arithmetic_of_dcl_is_two_thirds_of_backprops() -> None:
    built = [subjects.method(config("dcl"), FACTS), subjects.baseline("bp", config("bp"), FACTS)]
    own, backprop = time_steps(built, seconds=0, rounds=(2, 2))
    assert 2 / 3 < own.flops / backprop.flops < 0.7  # the first layer has no input gradient in either


def test_a_method_with_phases_is_timed_by_their_shares() -> None:
    subject = subjects.method(config("layerwise"), FACTS)
    shares = [share for share, _ in subject.start()]
    assert len(shares) > 1
    assert sum(shares) == pytest.approx(1)


def test_memory_of_dcl_is_a_fraction_of_backprops() -> None:
    own = measure_memory(subjects.method(config("dcl", batch_size="64"), FACTS))
    backprop = measure_memory(subjects.baseline("bp", config("bp", batch_size="64"), FACTS))
    assert own["live_tensor_bytes"] < 0.6 * backprop["live_tensor_bytes"]


def test_depth__activations_are_constant_for_local_rules_and_linear_for_backprop() -> None:
    rows = {(row["method"], row["blocks"]): row for row in depth_rows(["dcl", "bp"], [1, 2, 3], backprop_up_to=2)}
    local = {rows["dcl", blocks]["activation_bytes"] for blocks in (1, 2, 3)}
    assert len(local) == 1
    assert rows["dcl", 3]["total_bytes"] > rows["dcl", 1]["total_bytes"]  # weights, and what AdamW knows of them
    one, two, three = (rows["bp", blocks] for blocks in (1, 2, 3))
    assert two["activation_bytes"] > one["activation_bytes"] + 30 * MIB
    assert [row["extrapolated"] for row in (one, two, three)] == [False, False, True]
    assert three["activation_bytes"] == 2 * two["activation_bytes"] - one["activation_bytes"]


def test_depth__the_network_is_what_it_says() -> None:
    net = residual_network(3)
    assert sum(p.numel() for p in net.parameters()) == 3 * 16 * 9 + 32 + 3 * (2 * 16 * 16 * 9 + 64) + 170


def test_bench_step__json_has_the_rows_of_the_contract(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localprop.bench.rows.STEP_SECONDS", 0.0)  # the fewest rounds
    assert main(["bench", "step", *TINY, "--methods", "dcl,pred", "--baselines", "bp-fused", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["dcl", "pred", "bp-fused"]
    keys = {"method", "model", "width", "batch_size", "threads", "precision", "step_seconds", "backprop_step_seconds"}
    keys |= {"step_ratio", "step_ratio_spread", "floor_ratio"}
    for row in rows:
        assert keys <= set(row)
        assert (row["model"], row["width"], row["batch_size"], row["threads"]) == ("vgg8b", 0.0625, 8, 1)
        low, high = row["step_ratio_spread"]
        assert 0 < low <= row["step_ratio"] <= high


@pytest.mark.slow
def test_bench_memory__json_has_the_rows_of_the_contract_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "memory.png"
    words = ["--methods", "dcl", "--baselines", "bp-sqrt", "--picture", str(picture), "--json"]
    assert main(["bench", "memory", *TINY, *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["dcl", "bp-sqrt"]
    for row in rows:
        for key in ("peak_memory_bytes", "live_tensor_bytes"):
            assert row[key] > 0
            assert row[f"backprop_{key}"] > 0
        assert row["live_ratio"] == pytest.approx(row["live_tensor_bytes"] / row["backprop_live_tensor_bytes"])
    assert Image.open(picture).size[0] > 500


def test_bench_depth__prints_a_table_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "depth.png"
    assert main(["bench", "depth", "--methods", "dcl", "--blocks", "1,2", "--picture", str(picture)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["method", "blocks", "activations", "all"]
    assert [line.split()[:2] for line in lines] == [["dcl", "1"], ["dcl", "2"], ["bp", "1"], ["bp", "2"]]
    assert Image.open(picture).size[0] > 500


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["step", "--baselines", "bp-fuse"], "--baselines bp-fuse: no such baseline (did you mean 'bp-fused'?)"),
        (["step", "--methods", "dcll"], "no method 'dcll' (did you mean 'dcl'?)"),
        (["depth", "--blocks", "8,x"], "--blocks 8,x: must be whole numbers of at least 1"),
        (["step", "--epochs", "3"], "--epochs 3: localprop bench does not take this"),
        (["step", *TINY, "--methods", "cafo-mse"], "cafo-mse takes no optimiser steps"),
        (["memory", "--data", "folder:there"], "a benchmark needs a named data set"),
        (["speed"], "argument what: invalid choice: 'speed'"),
    ],
)
def test_bench__mistakes_are_named(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert expected in capsys.readouterr().err
