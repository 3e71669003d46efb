"""A run with a curriculum, as a user trains it: what it draws, and that it resumes without the run that judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from localprop.cli import main
from localprop.train import checkpoint
from tests.cli.processes import KILLED, Server, assert_same_end

SMALL = [
    *("train", "--model", "conv", "--model.width", "0.0625", "--data", "fashion-mini", "--batch-size", "32"),
    *("--limit-batches", "4", "--threads", "1", "--device", "cpu"),
]


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    assert main([*SMALL, "--method", "bp", "--epochs", "1", "--out", str(tmp_path / "judge")]) == 0
    return tmp_path / "judge"


@pytest.mark.slow
def test_a_run_resumes_without_the_one_that_judged_its_images(judge: Path, tmp_path: Path):
    flags = ["--method", "pred", "--epochs", "2", "--curriculum", judge, "--checkpoint-every", "2", "--out"]
    with Server(tmp_path) as server:
        assert server.run(*SMALL, *flags, tmp_path / "undisturbed").code == 0
        again = [*SMALL, *flags, tmp_path / "run", "--resume", "auto"]
        assert server.run(*again, event=("in_write", 2, "after replace")).code == KILLED
        judge.rename(tmp_path / "away")
        assert server.run(*again).code == 0
    assert_same_end(tmp_path / "run", tmp_path / "undisturbed")


def test_the_two_orders_are_each_other_turned_round(judge: Path, tmp_path: Path):
    orders = []
    for order in ("easy", "hard"):
        run = tmp_path / order
        flags = ["--epochs", "1", "--curriculum", judge, "--curriculum-order", order, "--out", run]
        assert main([*SMALL, *map(str, flags)]) == 0
        newest = checkpoint.newest(run / "checkpoint")
        assert newest is not None
        orders.append(checkpoint.load(newest)["curriculum"])
    easy, hard = ({int(index) for index in order[:2000]} for order in orders)
    assert sorted(orders[0].tolist()) == list(range(10_000))
    assert not easy & hard


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--curriculum", "nowhere"], "--curriculum nowhere: not a run of localprop"),
        (["--curriculum", "{judge}", "--image-size", "14"], "was trained on images of shape (1, 28, 28)"),
        (["--pacing", "slow"], "--pacing slow: must be 'linear' or 'exponential'"),
        (["--curriculum-order", "hart"], "did you mean 'hard'?"),
    ],
)
def test_mistakes_are_told(flags: list[str], told: str, judge: Path, tmp_path: Path, capsys):
    words = [flag.format(judge=judge) for flag in flags]
    assert main([*SMALL, "--epochs", "1", *words, "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err
