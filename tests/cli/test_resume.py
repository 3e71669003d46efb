"""A run that is killed again and again, inside checkpoint writes too, ends as the undisturbed run does, bit by bit."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localprop.train import checkpoint
from tests.cli.processes import KILLED, Server, assert_same_end, finish, rows, start, steps_kept

METHODS = ("bp", "dcl", "dcl-s")
GROUPS = {"bp": 1, "dcl": 3, "dcl-s": 3}
"""Optimisers: one of the network, or one a block."""


def command(method: str, directory: Path) -> list[object]:
    """Train 24 steps: batch norm and dropout, so that buffers and random draws have to be right."""
    settings = (
        "--model conv --model.width 0.125 --model.dropout 0.2 --data fashion-mini --batch-size 32 --epochs 3 "
        "--limit-batches 8 --checkpoint-every 2 --log-every 1 --keep 2 --threads 1 --device cpu"
    )
    return ["train", "--method", method, *settings.split(), "--out", directory]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train every method once, in a process that nothing disturbs; one of them as a user does."""
    directories = {method: tmp_path_factory.mktemp("undisturbed") / method for method in METHODS}
    for method, directory in directories.items():
        argv = command(method, directory)
        ended = finish(start(*argv)) if method == "dcl" else server.run(*argv)
        assert ended.code == 0, ended.output
    return directories


def deaths(groups: int) -> list[tuple[tuple[object, ...], list[int], bool]]:
    """List where each process of a chain dies: the place, the checkpoints left, whether a temporary file is left.

    A temporary file stays until the next write to its directory.
    """
    return [
        (("in_row", 2), [], False),
        (("in_replacing", "metrics.jsonl"), [], True),
        (("in_write", 1, "first byte"), [], True),
        (("in_write", 2, "inside a tensor"), [2], True),
        (("in_update", 2 * groups + (groups + 1) // 2), [2, 4], False),
        (("in_write", 2, "before fsync"), [4, 6], True),
        (("in_evaluation", 1), [4, 6], True),
        (("in_write", 3, "after fsync"), [8, 10], True),
        (("in_write", 2, "before replace"), [10, 12], True),
        (("in_write", 2, "after replace"), [12, 14, 16], False),
        (("in_write", 2, "before the directory's fsync"), [16, 18, 20], False),
        (("in_write", 1, "before pruning"), [16, 18, 20, 22], False),
        (("in_replacing", "final.json"), [22, 24], True),
    ]


@pytest.mark.parametrize("method", [*METHODS[:2], pytest.param(METHODS[2], marks=pytest.mark.slow)])
def test_a_run_killed_at_every_kind_of_place_ends_as_the_undisturbed_run(
    method: str, server: Server, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    again = [*command(method, run), "--resume", "auto"]
    for place, left, temporary in deaths(GROUPS[method]):
        ended = server.run(*again, event=place)
        assert ended.code == KILLED, f"{place}: {ended.output}"
        assert steps_kept(run) == left, place
        assert bool([*run.glob(".*.tmp-*"), *run.glob("checkpoint/.*.tmp-*")]) == temporary, place
        assert not (run / "final.json").exists()
    ended = server.run(*again)
    assert ended.code == 0, ended.output
    assert_same_end(run, undisturbed[method])
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint", "config.yaml", "final.json", "metrics.jsonl"]
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["step-00000022.pt", "step-00000024.pt"]


def test_the_undisturbed_run_records_every_step_once(undisturbed: dict[str, Path]) -> None:
    for method, directory in undisturbed.items():
        found = rows(directory)
        assert [row["step"] for row in found if row["kind"] == "step"] == list(range(1, 25))
        assert [row["step"] for row in found if row["kind"] == "evaluation"] == [8, 16, 24]
        assert len([row for row in found if row["kind"] == "block"]) == 24 * GROUPS[method]


def test_randomness_matters(server: Server, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert server.run(*command("dcl", other), "--seed", 1).code == 0
    assert rows(other) != rows(undisturbed["dcl"])


def kill_after(seconds: float, argv: list[object], run: Path) -> None:
    """Kill a training process from outside, a while after its first sign of life."""
    process = start(*argv)
    before = checkpoint.newest(run / "checkpoint")
    deadline = time.monotonic() + 60
    while checkpoint.newest(run / "checkpoint") == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    ended = finish(process)
    assert ended.code in (KILLED, 0), ended.output


@pytest.mark.slow
def test_a_process_killed_from_outside(undisturbed: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = [*command("dcl", run), "--resume", "auto"]
    kill_after(0.01, again, run)
    assert not (run / "final.json").exists()
    ended = finish(start(*again))
    assert ended.code == 0, ended.output
    assert_same_end(run, undisturbed["dcl"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_processes_killed_from_outside_at_random(method: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    draw = random.Random(method)
    for attempt in range(4):
        run = tmp_path / str(attempt)
        again = [*command(method, run), "--resume", "auto"]
        for _ in range(3):
            kill_after(draw.uniform(0, 0.15), again, run)
        ended = finish(start(*again))
        assert ended.code == 0, ended.output
        assert_same_end(run, undisturbed[method])
