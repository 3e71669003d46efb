"""Export a run: cut its network down, write it, run what was written on test images, and only then put it in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from localprop.errors import check_installed, nearest
from localprop.export.check import TOLERANCE, largest_difference, sample_of
from localprop.export.facts import describe, numbers_of
from localprop.export.formats import FORMATS, Exported
from localprop.export.program import INPUT
from localprop.infer.trained import ANSWER, Exit, TrainedNetwork, read_exit, stored_tensors
from localprop.train.evaluate import load_data_of
from localprop.train.stored import StoredRun, load_run


def export_run(
    directory: Path,
    *,
    to: str,
    exit: str = "last",
    out: Path | None = None,
    allow_imports: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export the newest state of a run, and check the export against it on test images.

    Args:
        directory: A run directory.
        to: "onnx", "pt2" or "safetensors".
        exit: "last", the network's answer; a block by its name or number, without the blocks after it; or "all", an
            output for every block that predicts beside the answer.
        out: File to write, or for safetensors the folder; default DIR/export/EXIT with the format's ending.
        allow_imports: Whether import paths in the run's config.yaml may be imported.
        say: Told what the user should know.

    Returns:
        Where the export lies, its bytes, its outputs, how many numbers it stores (parameters and statistics), and the
        largest difference to the run's own answers.

    Raises:
        ValueError: The run or its data cannot be read, the exit makes no prediction, the format cannot hold the
            network, the export answers otherwise than the run, or `out` exists or cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"--to {to}: must be one of {', '.join(FORMATS)}{nearest(to, FORMATS)}")
    chosen = FORMATS[to]
    check_installed(f"--to {to}", chosen.packages, chosen.extra)
    run = load_run(directory, device="cpu", allow_imports=allow_imports)
    wanted = _exit_of(run, exit)
    word = wanted if isinstance(wanted, str) else f"block-{wanted}"
    path = out or directory / "export" / f"{word}{chosen.ending}"
    _check_free(path)
    final = numbers_of(run, directory)
    if run.config.precision != "fp32":
        say(f"the run computed in {run.config.precision}; the export computes in float32, and is compared in it")
    sample = sample_of(run, load_data_of(run).data.test, wanted)
    network = _cut_down(run, wanted, exit)
    exported = Exported(run, network, describe(run, network, tuple(sample.expected)), final, allow_imports)
    with _put_in_place(path) as temporary:
        chosen.write(temporary, exported)
        difference = largest_difference(sample, lambda images: chosen.run(temporary, images, exported))
    say(f"largest difference to the run's own answers: {difference:.2g} of the largest logit")
    return {
        "path": str(path),
        "to": to,
        "exit": exported.facts["exit"],
        "outputs": list(sample.expected),
        "bytes": _size(path),
        "stored_numbers": sum(tensor.numel() for tensor in stored_tensors(network).values()),
        "largest_difference": difference,
        "tolerance": TOLERANCE,
        "batch_sizes": sample.batch_sizes,
    }


def _exit_of(run: StoredRun, text: str) -> Exit:
    """Return what the user wants; the last block alone is the network's answer where it answers alone."""
    names = run.rule.net.names
    wanted = read_exit(text, names)
    taken = {INPUT, ANSWER} & set(names)
    if wanted == "all" and taken:
        raise ValueError(f"--exit all: a block is named {min(taken)!r}, as the input or the answer is; name one block")
    return "last" if wanted == len(names) - 1 and not run.rule.answers_together else wanted


def _cut_down(run: StoredRun, wanted: Exit, text: str) -> TrainedNetwork:
    try:
        return TrainedNetwork(run.rule, run.facts, wanted)
    except ValueError as error:
        raise ValueError(
            f"--exit {text}: method {run.config.method.name}: {str(error).removeprefix('exits: ')}; use --exit last or "
            "all"
        ) from error


def _check_free(path: Path) -> None:
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"--out {path}: exists already; choose another --out, or remove it first")


@contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move what lies there to `path` if all goes well.

    Raises:
        ValueError: It cannot be written, or something was put there meanwhile.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            yield temporary
            _check_free(path)
            os.rename(temporary, path)
    except OSError as error:
        raise ValueError(
            f"--out {path}: cannot be written ({error.strerror or error}); free space, or choose another --out"
        ) from error


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files)
