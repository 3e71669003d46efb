"""Runs that are interrupted, damaged, diverging or out of space: exit codes, messages, and what is left."""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from localprop.train import checkpoint
from tests.cli.processes import KILLED, Ended, Server, assert_same_end, finish, rows, start, steps_kept


def command(directory: Path, *more: object) -> list[object]:
    """Train 12 steps."""
    settings = (
        "--method dcl --model conv --model.width 0.125 --model.dropout 0.2 --data fashion-mini --batch-size 32 "
        "--epochs 2 --limit-batches 6 --checkpoint-every 2 --log-every 1 --threads 1 --device cpu"
    )
    return ["train", *settings.split(), "--out", directory, *more]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert server.run(*command(directory)).code == 0
    return directory


@pytest.fixture(scope="module")
def interrupted_once(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interrupted") / "run"
    assert server.run(*command(directory), event=("signalled_in_step", 5, "SIGINT")).code == 130
    return directory


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> Path:
    """A run that was interrupted in its fifth step, with checkpoints at 4 and 5."""
    return Path(shutil.copytree(interrupted_once, tmp_path / "run"))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_one_line(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.output
    assert "Traceback" not in ended.output
    (line,) = ended.errors
    for word in words:
        assert word in line


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_writes_a_checkpoint_and_exits_130(name: str, server: Server, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = server.run(*command(run), event=("signalled_in_step", 5, name))
    assert_one_line(ended, 130, "interrupted at step 5 of 12", "--resume auto")
    assert steps_kept(run) == [4, 5]
    assert not (run / "final.json").exists()
    ended = server.run(*command(run, "--resume", "auto"), event=("signalled_in_step", 4, name))
    assert_one_line(ended, 130, "interrupted at step 9 of 12")
    assert server.run(*command(run, "--resume", "auto")).code == 0
    assert_same_end(run, finished)


@pytest.mark.slow
def test_sigterm_from_outside(server: Server, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ["--epochs", 500, "--checkpoint-every", 100_000]
    process = start(*command(run, *long))
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert_one_line(finish(process), 130, "of 3000", "--resume auto")
    (step,) = steps_kept(run)
    assert max(row["step"] for row in rows(run)) == step


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_training_exits_130(name: str, server: Server, tmp_path: Path) -> None:
    ended = server.run(*command(tmp_path / "run"), event=("signalled_while_loading", name))
    assert_one_line(ended, 130, "interrupted")
    assert not (tmp_path / "run").exists()


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("notes")


def of_another_program(file: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, file)


def without_settings(file: Path) -> None:
    checkpoint.save(file.parent, {"epoch": 3}, step=5, keep=9)


def with_odd_settings(file: Path) -> None:
    checkpoint.save(file.parent, {"config": 3}, step=5, keep=9)


def without_a_part(file: Path) -> None:
    state = checkpoint.load(file)
    del state["optimizers"]
    checkpoint.save(file.parent, state, step=5, keep=9)


def of_another_network(file: Path) -> None:
    state = checkpoint.load(file)
    state["rule"] = {f"{name}x": value for name, value in state["rule"].items()}
    checkpoint.save(file.parent, state, step=5, keep=9)


def at_a_step_that_is_none(file: Path) -> None:
    checkpoint.save(file.parent, {**checkpoint.load(file), "step": "5"}, step=5, keep=9)


def at_a_step_before_the_first(file: Path) -> None:
    checkpoint.save(file.parent, {**checkpoint.load(file), "step": -5}, step=5, keep=9)


def at_a_step_after_the_last(file: Path) -> None:
    checkpoint.save(file.parent, {**checkpoint.load(file), "step": 13}, step=5, keep=9)


DAMAGES: dict[Callable[[Path], None], str] = {
    truncated: "truncated or damaged",
    flipped: "truncated or damaged",
    empty: "is empty",
    text: "is not a localprop checkpoint",
    of_another_program: "is not a localprop checkpoint",
    without_settings: "not those of a run of localprop",
    with_odd_settings: "not those of a run of localprop",
    without_a_part: "does not fit this run",
    of_another_network: "does not fit this run",
    at_a_step_that_is_none: "does not fit this run",
    at_a_step_before_the_first: "it stands at step -5 of 12",
    at_a_step_after_the_last: "it stands at step 13 of 12",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_checkpoint_gives_one_line(
    damage: Callable[[Path], None], server: Server, interrupted: Path
) -> None:
    damage(interrupted / "checkpoint" / "step-00000005.pt")
    before = contents(interrupted)
    ended = server.run(*command(interrupted, "--resume", "auto"))
    assert_one_line(ended, 2, DAMAGES[damage], str(interrupted))
    assert contents(interrupted) == before


def test_what_the_message_says_repairs_a_damaged_run(server: Server, interrupted: Path, finished: Path) -> None:
    newest = interrupted / "checkpoint" / "step-00000005.pt"
    truncated(newest)
    ended = server.run(*command(interrupted, "--resume", "auto"))
    assert_one_line(ended, 2, f"delete {newest} to continue from step-00000004.pt")
    newest.unlink()
    assert server.run(*command(interrupted, "--resume", "auto")).code == 0
    assert_same_end(interrupted, finished)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_is_a_pickle_bomb_executes_nothing(
    zipped: bool, server: Server, interrupted: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    file = interrupted / "checkpoint" / "step-00000005.pt"
    payload = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": Bomb(mark)}
    if zipped:
        torch.save(payload, file)
    else:
        file.write_bytes(pickle.dumps(payload))
    assert_one_line(server.run(*command(interrupted, "--resume", "auto")), 2, "is not a localprop checkpoint")
    assert not mark.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert mark.exists()


def test_keep_bounds_the_files(server: Server, finished: Path, tmp_path: Path) -> None:
    assert steps_kept(finished) == [10, 12]
    assert server.run(*command(tmp_path / "run", "--keep", 1)).code == 0
    assert steps_kept(tmp_path / "run") == [12]


def test_a_used_directory_is_refused_without_resume(server: Server, interrupted: Path, finished: Path) -> None:
    for directory in (interrupted, finished):
        before = contents(directory)
        assert_one_line(server.run(*command(directory)), 2, str(directory), "not empty", "--resume auto")
        assert contents(directory) == before


def test_a_strangers_directory_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    ended = server.run(*command(tmp_path, "--resume", "auto"))
    assert_one_line(ended, 2, "not a run of localprop", "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_finished_run_is_left_as_it_is(server: Server, finished: Path) -> None:
    before = contents(finished)
    assert server.run(*command(finished, "--resume", "auto")).code == 0
    assert contents(finished) == before


def test_changed_settings_are_refused_by_name(server: Server, interrupted: Path, finished: Path) -> None:
    changes = ["--seed", 3, "--model.dropout", 0.3, "--optimizer", "SGD", "--resume", "auto"]
    for directory in (interrupted, finished):
        before = contents(directory)
        ended = server.run(*command(directory, *changes))
        assert_one_line(ended, 2, "seed is 3, was 0", "model.dropout is 0.3, was 0.2", "optimizer is SGD, was AdamW")
        assert "epochs" not in ended.errors[0]
        assert contents(directory) == before


def test_free_settings_may_change(server: Server, interrupted: Path) -> None:
    changes = ["--keep", 1, "--log-every", 5, "--checkpoint-every", 3, "--resume", "auto"]
    assert server.run(*command(interrupted, *changes)).code == 0
    assert steps_kept(interrupted) == [12]


@pytest.mark.parametrize(
    ("every", "left", "message"),
    [
        (1, [1], r"parameter \S+ of block \d \(\w+\) is not finite after step 1; the last good .*step-00000001\.pt"),
        (100, [], r"loss of block \d \(\w+\) is (nan|inf) at step \d; no checkpoint was written yet"),
    ],
)
def test_divergence_exits_3_with_block_and_step(
    every: int, left: list[int], message: str, server: Server, tmp_path: Path
) -> None:
    warming_up = ["--schedule", "linear", "--schedule.warmup", 0.5]  # from zero: the first step does no harm
    diverging = ["--optimizer", "SGD", "--optimizer.lr", "1e30", *warming_up, "--checkpoint-every", every]
    ended = server.run(*command(tmp_path / "run", *diverging))
    assert_one_line(ended, 3, "--optimizer.lr")
    assert re.search(message, ended.errors[0]), ended.errors
    assert steps_kept(tmp_path / "run") == left
    for path in (tmp_path / "run" / "checkpoint").glob("*.pt"):
        assert all(bool(value.isfinite().all()) for value in checkpoint.load(path)["rule"].values())


def test_a_full_disk_keeps_the_last_checkpoint(server: Server, interrupted: Path, finished: Path) -> None:
    before = contents(interrupted / "checkpoint")
    size = (interrupted / "checkpoint" / "step-00000005.pt").stat().st_size
    ended = server.run(*command(interrupted, "--resume", "auto"), event=("with_largest_file", size // 2))
    assert_one_line(ended, 3, "cannot write checkpoint", "File too large", "the last good checkpoint is step-00000005")
    assert contents(interrupted / "checkpoint") == before
    assert server.run(*command(interrupted, "--resume", "auto")).code == 0
    assert_same_end(interrupted, finished)


def test_a_disk_too_full_for_a_row_of_metrics(server: Server, interrupted: Path, finished: Path) -> None:
    before = contents(interrupted / "checkpoint")
    room = (interrupted / "metrics.jsonl").stat().st_size + 50
    ended = server.run(*command(interrupted, "--resume", "auto"), event=("with_largest_file", room))
    assert_one_line(ended, 3, "metrics.jsonl: File too large", "last good checkpoint is", "step-00000005.pt")
    assert contents(interrupted / "checkpoint") == before
    assert server.run(*command(interrupted, "--resume", "auto")).code == 0
    assert_same_end(interrupted, finished)


def test_a_run_with_a_logger_killed_before_its_first_checkpoint_goes_on(
    server: Server, finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    logged = command(run, "--log", "tensorboard", "--resume", "auto")
    assert server.run(*logged, event=("in_row", 2)).code == KILLED
    assert (run / "tensorboard").is_dir()
    assert not steps_kept(run)
    assert server.run(*logged).code == 0
    assert rows(run) == rows(finished)


OTHER_WAYS = """
--accumulate 2 --clip-norm 0.5 --precision bf16 --schedule cosine --schedule.warmup 0.25
--optimizer SGD --optimizer.momentum 0.9 --optimizer.lr 0.05 --validation 0.1
""".split()  # noqa: SIM905


@pytest.mark.slow
def test_every_other_way_to_train_resumes_too(server: Server, tmp_path: Path) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    assert server.run(*command(undisturbed, *OTHER_WAYS)).code == 0
    again = command(run, *OTHER_WAYS, "--resume", "auto")
    assert server.run(*again, event=("signalled_in_step", 3, "SIGTERM")).code == 130
    assert server.run(*again, event=("in_write", 2, "before replace")).code == KILLED
    assert server.run(*again, event=("in_evaluation", 1)).code == KILLED
    assert server.run(*again).code == 0
    assert_same_end(run, undisturbed)

    found = rows(run)
    factors = [step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 9)) / 2 for step in range(12)]
    assert [row["lr"] for row in found if row["kind"] == "step"] == pytest.approx([0.05 * f for f in factors])
    splits = [(row["step"], row["split"]) for row in found if row["kind"] == "evaluation"]
    assert splits == [(6, "validation"), (12, "validation"), (12, "test")]


NOISY = """
import random
import numpy as np
import torch
from torch import nn

class Noise(nn.Module):
    def forward(self, x):
        return x * (1 + 0.1 * random.random() + 0.1 * np.random.rand()) if self.training else x

def build(image_shape, num_classes):
    channels, height, width = image_shape
    size = channels * height * width
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), Noise(), nn.Linear(16, num_classes))
"""


def test_draws_from_the_global_generators_resume_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"

    def noisy(directory: Path) -> list[object]:
        settings = "--method bp --data fashion-mini --batch-size 32 --epochs 1 --limit-batches 6 --checkpoint-every 2"
        model = ["--model", "noisy:build", "--log-every", 1, "--threads", 1, "--device", "cpu"]
        return ["train", *settings.split(), *model, "--out", directory]

    assert server.run(*noisy(undisturbed), directory=tmp_path).code == 0
    again = [*noisy(run), "--resume", "auto"]
    assert server.run(*again, event=("in_row", 2), directory=tmp_path).code == KILLED
    assert server.run(*again, event=("in_write", 2, "before replace"), directory=tmp_path).code == KILLED
    assert steps_kept(run) == [2]
    assert server.run(*again, directory=tmp_path).code == 0
    assert_same_end(run, undisturbed)
