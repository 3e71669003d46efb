"""Runs of the command line in processes of their own, which can be made to die or to be signalled at exact places.

One server imports the library once and forks a child for every run; each child patches its own copy only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import localprop
from localprop.record import read
from localprop.train import checkpoint

SOURCE, ROOT = Path(localprop.__file__).parents[1], Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
TIMED_ROWS = ("images_per_second", "step_seconds")
TIMED_NUMBERS = ("step_seconds", "peak_memory_bytes", "train_seconds", "warmup_seconds")

SERVER = """
import json, os, pathlib, resource, sys
import torch
import torch._dynamo  # optimisers import it: most of the time of a short run
torch.set_num_threads(1)
import localprop.train.fit
from localprop.cli import main
from localprop.record import Recorder
from localprop.train import checkpoint, features, phases, training
from tests.deaths import after_bytes, around, strike

IN_WRITE = {
    "first byte": lambda: after_bytes(1),
    "inside a tensor": lambda: after_bytes(20_000),
    "before fsync": lambda: around(os, "fsync", "before", 1),
    "after fsync": lambda: around(os, "fsync", "after", 1),
    "before replace": lambda: around(os, "replace", "before", 1),
    "after replace": lambda: around(os, "replace", "after", 1),
    "before the directory's fsync": lambda: around(os, "fsync", "before", 2),
    "before pruning": lambda: around(os, "fsync", "after", 2),
}

def in_write(count, place):
    original, calls = checkpoint.save, [0]
    def save(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            IN_WRITE[place]()
        return original(*args, **kwargs)
    checkpoint.save = save

def in_row(count):
    original, calls = Recorder.write, [0]
    def write(self, row):
        calls[0] += 1
        if calls[0] == count:
            with self._path.open("ab") as file:
                file.write(json.dumps(row).encode()[:20])
            strike()
        original(self, row)
    Recorder.write = write

def in_replacing(name):
    around(os, "replace", "before", 1, matches=lambda source, target: pathlib.Path(target).name == name)

def in_update(count):
    around(torch.optim.AdamW, "step", "before", count)

def at_border(count, when):
    around(phases.Borders, "_call", when, count)

def in_features(count):
    around(features.FeatureCache, "batch", "before", count)

def in_evaluation(count):
    around(training, "evaluate", "before", count)

def signalled_in_step(count, signal_name):
    around(training.Training, "_train_step", "before", count, signal_name)

def signalled_while_loading(signal_name):
    around(training, "load_data", "before", 1, signal_name)

def with_largest_file(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def run(request):
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["directory"])
    name, *arguments = request["event"] or [None]
    if name:
        globals()[name](*arguments)
    code = main(request["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = run(json.loads(line))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, minus the signal that killed it, and all it printed."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("localprop: ")]


class Server:
    """Runs commands one after the other, each in a child of its own."""

    def __init__(self, directory: Path) -> None:
        script = directory / "server.py"
        script.write_text(SERVER)
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(ROOT)])},
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=60)

    def run(self, *argv: object, event: Sequence[object] = (), directory: Path | None = None) -> Ended:
        """Run a command in a working directory.

        `event` names a function of the server, with its arguments, that arms what is to happen.
        """
        output = self._directory / "output"
        request: dict[str, Any] = {
            "argv": [str(word) for word in argv],
            "event": list(event),
            "output": str(output),
            "directory": str(directory or self._directory),
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return Ended(int(stdout.readline()), output.read_text())


def start(*argv: object) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "localprop", *map(str, argv)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command that was started."""
    with process:
        _, err = process.communicate(timeout=120)
    return Ended(process.returncode, err)


def rows(directory: Path) -> list[dict[str, Any]]:
    """Read the rows of a run without what time decides."""
    return [
        {key: value for key, value in row.items() if key not in TIMED_ROWS} for row in read(directory / "metrics.jsonl")
    ]


def numbers(directory: Path) -> dict[str, Any]:
    """Read the final numbers of a run without what time decides."""
    content = json.loads((directory / "final.json").read_text())
    return {key: value for key, value in content.items() if key not in TIMED_NUMBERS}


def steps_kept(directory: Path) -> list[int]:
    """List the steps of the checkpoints, each of which must be readable."""
    paths = sorted((directory / "checkpoint").glob("step-*.pt"))
    return [checkpoint.load(path)["step"] for path in paths]


def assert_same_end(directory: Path, undisturbed: Path) -> None:
    """Demand that two finished runs are equal bit by bit: numbers, rows, and all of the last checkpoint."""
    expected = numbers(undisturbed)
    assert numbers(directory) == expected
    assert len(expected["weights_sha256"]) == 64
    assert rows(directory) == rows(undisturbed)
    states = []
    for run in (directory, undisturbed):
        newest = checkpoint.newest(run / "checkpoint")
        assert newest is not None
        states.append({k: v for k, v in checkpoint.load(newest).items() if k not in TIMED_NUMBERS})
    assert_equal(*states)


def assert_equal(left: object, right: object) -> None:
    """Demand that two states are equal, tensors bit by bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


KILLED = -signal.SIGKILL
