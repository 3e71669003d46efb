"""Train one network by several methods under one protocol, and put them into one table."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from rich.console import Console

from localprop.bench.cost import Memory, measure, memory_of, protocol
from localprop.report import comparison, comparison_figure, markdown, terminal, to_json
from localprop.train.config import RunConfig
from localprop.train.directory import (
    check_run_directory,
    check_unused,
    claim_directory,
    is_stale,
    write_json,
    write_text,
)
from localprop.train.errors import Interrupted, TrainingError
from localprop.train.interrupt import answering_signals
from localprop.train.mistakes import check
from localprop.train.phases import takes_steps
from localprop.train.stored import load_run

_POLL_SECONDS = 0.2
_TABLES = ("comparison.md", "comparison.json", "comparison.png")


def compare(
    configs: Sequence[RunConfig],
    directory: Path,
    *,
    seeds: range,
    resume: bool = False,
    stream: TextIO = sys.stderr,
    notes: Sequence[str] = (),
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Train every method with every seed, measure what each costs, and write one table and one picture.

    Every run has a process of its own; so has every measurement of memory. The directory holds METHOD/seed-K/ (run
    directories), METHOD/cost.json, comparison.md, comparison.json and comparison.png.

    Args:
        configs: One a method; they should differ in nothing else.
        directory: Where everything is written.
        seeds: The seeds of each method.
        resume: Keep what is finished, go on with what is not.
        stream: Where progress is shown; the table goes to standard output.
        notes: Lines to show first.
        allow_imports: Whether import paths in the settings of other runs that these name may be imported.

    Returns:
        The content of comparison.json.

    Raises:
        ValueError: The directory is in use, or a run is refused.
        TrainingError: A run failed.
        Interrupted: A signal came; resume goes on.
    """
    if not check_unused(directory, resume=resume):
        _refuse_strangers(directory)
    check(configs, allow_imports=allow_imports)  # a mistake in the last method's settings must not wait for its turn
    claim_directory(directory)
    for note in notes:
        print(note, file=stream, flush=True)
    for seed in seeds:
        for config in configs:
            print(f"\n{config.method.name}, seed {seed}", file=stream, flush=True)
            _train(replace(config, seed=seed), directory / config.method.name / f"seed-{seed}")
    backprop: dict[str, Memory] = {}  # by all settings but the method's
    for config in configs:
        file = directory / config.method.name / "cost.json"
        if not file.exists():
            run = load_run(file.parent / f"seed-{seeds[0]}", allow_imports=True)
            if not takes_steps(run.rule.phases()):  # closed forms alone: there is no step to measure
                continue
            print(f"measuring time and memory of {config.method.name}", file=stream, flush=True)
            key = protocol(config)
            if key not in backprop:
                backprop[key] = memory_of("bp", config, run.facts)
            write_json(file, measure(config, run.facts, backprop=backprop[key]))
    rows = comparison(directory, [config.method.name for config in configs])
    content = to_json(rows)
    write_json(directory / "comparison.json", content)
    write_text(directory / "comparison.md", markdown(rows))
    comparison_figure(directory, rows, directory / "comparison.png")
    Console(width=None if sys.stdout.isatty() else 100).print(terminal(rows))
    print(f"\ntable and picture: {directory / 'comparison.md'}, {directory / 'comparison.png'}", file=stream)
    return content


def _refuse_strangers(directory: Path) -> None:
    """Refuse a directory that holds anything but runs as METHOD/seed-K and what is made from them, reports included."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            is_own = all(re.fullmatch(r"seed-\d+|cost\.json", path.name) or is_stale(path) for path in entry.iterdir())
        else:
            is_own = entry.name in _TABLES or entry.suffix == ".html" or is_stale(entry)
        if not is_own:
            raise ValueError(
                f"--out {directory}: not a comparison of localprop ({entry.name} lies in it); choose another --out"
            )


def _train(config: RunConfig, out: Path) -> None:
    check_run_directory(config, out, resume=True)
    if (out / "final.json").exists():
        return
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "localprop", "train", "--config", str(file), "--out", str(out)]
        # The settings were vetted when this command was given; the file only carries them over.
        code, signalled = _run_child([*command, "--resume", "auto", "--allow-imports"])
    if code == 130 or (code == 0 and signalled):  # a run that was about to end ends, but the next must not begin
        raise Interrupted(f"interrupted in {out}; run the same command with --resume auto to go on")
    if code == 2:
        raise ValueError(f"{out}: the run was refused, see above")
    if code:
        raise TrainingError(f"{out}: the run failed with exit code {code}, see above")


def _run_child(command: Sequence[str]) -> tuple[int, bool]:
    """Run a command to its end; returns its exit code and whether a signal came, which is passed on to it once."""
    signalled = threading.Event()
    with answering_signals(lambda *_: signalled.set()):  # before the child is there: no signal is lost, no child left
        process = subprocess.Popen(command)
        code = None
        while code is None and not signalled.is_set():
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_POLL_SECONDS)
        if code is None:
            process.send_signal(signal.SIGTERM)  # the run writes its checkpoint
            code = process.wait()
    return code, signalled.is_set()
