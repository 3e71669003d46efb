"""Streams and signals of the process: a reader that goes away, closed and full streams, SIGTERM at any time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import localprop

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(localprop.__file__).parents[1])}


def test_train__a_closed_pipe_is_not_success(tmp_path: Path) -> None:
    words = ["--model", "fc", "--model.width", "0.125", "--epochs", "3", "--limit-batches", "2", "--threads", "1"]
    command = [sys.executable, "-m", "localprop", "train", *words, "--out", "run"]
    read, write = os.pipe()
    os.close(read)
    stopped = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stderr=write)
    os.close(write)
    assert stopped.returncode == 130
    assert not (tmp_path / "run" / "final.json").exists()
    resumed = subprocess.run([*command, "--resume", "auto"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "final.json").exists()


@pytest.mark.parametrize(("closed", "words", "code"), [
    ("stdout", ["methods"], 0),
    ("stderr", ["nonsense"], 2),
    pytest.param(
        "stderr", ["train", "--model", "fc", "--model.width", "0.125", "--epochs", "1", "--limit-batches", "1"], 0,
        marks=pytest.mark.slow,
    ),
])  # fmt: skip
def test_a_closed_stream_leads_nowhere(closed: str, words: list[str], code: int, tmp_path: Path) -> None:
    redirection = {"stdout": ">&-", "stderr": "2>&-"}[closed]
    command = ["sh", "-c", f'exec "$0" "$@" {redirection}', sys.executable, "-m", "localprop", *words]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def test_a_full_standard_error_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "localprop", "nonsense"], cwd=tmp_path, env=ENVIRONMENT, stderr=full
        )
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["methods"], ["train", "--model", "fc"]])
def test_sigterm_ends_any_command_as_ctrl_c_does(words: list[str], tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from localprop import cli\n"
        "cli._run = lambda words: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.exit(cli.main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "localprop: interrupted\n")


def test_no_result_is_lost_for_a_letter_that_the_terminal_has_not(tmp_path: Path) -> None:
    code = "import sys; from localprop import cli; cli._run = lambda words: print('1 ± 2'); sys.exit(cli.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 \\xb1 2\n", "")
