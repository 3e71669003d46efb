"""A run whose reader goes away is stopped, not done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import localprop


def test_train__a_closed_pipe_is_not_success(tmp_path: Path) -> None:
    words = ["--model", "fc", "--model.width", "0.125", "--epochs", "3", "--limit-batches", "2", "--threads", "1"]
    command = [sys.executable, "-m", "localprop", "train", *words, "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(localprop.__file__).parents[1])}
    read, write = os.pipe()
    os.close(read)
    stopped = subprocess.run(command, cwd=tmp_path, env=environment, stderr=write)
    os.close(write)
    assert stopped.returncode == 130
    assert not (tmp_path / "run" / "final.json").exists()
    resumed = subprocess.run([*command, "--resume", "auto"], cwd=tmp_path, env=environment, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "final.json").exists()
