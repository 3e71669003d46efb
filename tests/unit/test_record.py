"""Records with real files, real processes, a real terminal and the real packages."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import torch
from PIL import Image

import localprop.record
from localprop.record import (
    Picture,
    Points,
    Recorder,
    RecordError,
    make_console,
    read,
    scalars,
    sinks_from,
    truncate_after,
)

SOURCE = str(Path(localprop.record.__file__).parents[2])

BLOCK = {
    "kind": "block",
    "step": 4,
    "epoch": 0.5,
    "block": 3,
    "name": "layer3",
    "loss": 1.25,
    "error": None,
    "bound_nats": -0.5,
}
STEP = {
    "kind": "step",
    "step": 4,
    "epoch": 0.5,
    "lr": 5e-4,
    "images_per_second": 900.0,
    "step_seconds": 0.125,
}
EVALUATION = {
    "kind": "evaluation",
    "step": 5,
    "epoch": 1.0,
    "split": "test",
    "error": 12.5,
    "layer_errors": [None, 30.0, 11.25, 12.5],
    "ensemble_errors": {"uniform": 11.0, "linear": 10.5},
}
ROWS = [BLOCK, STEP, EVALUATION]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")]), **changes}


class Gathering:
    """A sink that keeps what it was given."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, object]] = []
        self.closed = 0

    def write(self, row: Mapping[str, object]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed += 1


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path, sink = tmp_path / "run" / "metrics.jsonl", Gathering()
    with Recorder(path, [sink]) as recorder:
        for row in ROWS:
            recorder.write(row)
            assert read(path)[-1] == row, "every row is on its way to the disk at once"
    assert read(path) == ROWS
    assert sink.rows == ROWS
    assert sink.closed == 1
    recorder.close()
    assert sink.closed == 1
    assert path.read_text().splitlines()[1] == (
        '{"kind":"step","step":4,"epoch":0.5,"lr":0.0005,"images_per_second":900.0,"step_seconds":0.125}'
    )


def test_a_second_recorder_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for row in ROWS:
        with Recorder(path) as recorder:
            recorder.write(row)
    assert read(path) == ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": float("nan")}, r"row\['loss'\] must be finite, got nan"),
        ({"layer_errors": [1.0, float("inf")]}, r"row\['layer_errors'\]\[1\] must be finite, got inf"),
        ({"ensemble_errors": {"uniform": -float("inf")}}, r"\['uniform'\] must be finite, got -inf"),
        ({"loss": torch.tensor(1.0)}, r"row\['loss'\] must be a number, .* got Tensor"),
        ({"ensemble_errors": {1: 2.0}}, "must have text as keys, got 1"),
        ({"step": None}, "must have a 'kind'"),
        ({"kind": None}, "must have a 'kind'"),
    ],
)
def test_what_json_cannot_hold_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path, sink = tmp_path / "metrics.jsonl", Gathering()
    with Recorder(path, [sink]) as recorder:
        recorder.write(STEP)
        with pytest.raises(ValueError, match=message):
            recorder.write({**BLOCK, **change})
        recorder.write(STEP)
    assert read(path) == sink.rows == [STEP, STEP]


def test_a_torn_last_line_is_ignored_and_must_go_before_appending(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Recorder(path) as recorder:
        for row in ROWS:
            recorder.write(row)
    whole = path.read_bytes()
    for cut in (1, 2, 40):
        path.write_bytes(whole[:-cut])
        assert read(path) == ROWS[:2]
        with pytest.raises(RecordError, match=r"metrics\.jsonl ends in a torn line"):
            Recorder(path)
    truncate_after(path, 100)
    with Recorder(path) as recorder:
        recorder.write(EVALUATION)
    assert read(path) == ROWS


@pytest.mark.parametrize("damage", ['{"kind":"st', "[]", "", "{}", '{"step":"4"}'])
def test_damage_elsewhere_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(STEP)
    path.write_text(f"{line}\n{damage}\n{line}\n")
    for use in (read, lambda path: truncate_after(path, 1)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected one JSON object"):
            use(path)
    assert path.read_text() == f"{line}\n{damage}\n{line}\n"


def test_truncate_keeps_the_steps_up_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{**STEP, "step": step, "name": "Schicht ü"} for step in (1, 2, 2, 3, 4)]
    with Recorder(path) as recorder:
        for row in rows:
            recorder.write(row)
    before = path.read_bytes()
    truncate_after(path, 4)
    assert path.read_bytes() == before
    truncate_after(path, 2)
    assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])
    truncate_after(path, 0)
    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncating_nothing_makes_nothing(tmp_path: Path) -> None:
    truncate_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_files_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*missing\.jsonl: No such file"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"cannot write .*file/metrics\.jsonl: "):
        Recorder(tmp_path / "file" / "metrics.jsonl")


# One process imports localprop, then forks a child per scenario.
SERVER = """
import os, pathlib, resource, signal, sys
from localprop.record import Recorder, RecordError

optional = ("tensorboard", "wandb", "torch.utils.tensorboard")
root = pathlib.Path(sys.argv[1])
(root / "imported.txt").write_text(repr([name for name in optional if name in sys.modules]))

if os.fork() == 0:
    recorder = Recorder(root / "killed.jsonl")
    for step in range(20):
        recorder.write({"kind": "step", "step": step})
    os.kill(os.getpid(), signal.SIGKILL)
(root / "end.txt").write_text(str(os.WTERMSIG(os.wait()[1])))

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Recorder(root / "full.jsonl") as recorder:
    try:
        for step in range(100):
            recorder.write({"kind": "step", "step": step, "text": "x" * 50})
    except RecordError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("scenes")
    done = run_python(SERVER, root)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def run_python(code: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_full_disk_leaves_whole_lines(scenes: tuple[Path, str]) -> None:
    root, message = scenes
    path = root / "full.jsonl"
    assert re.fullmatch(r"cannot write .*full\.jsonl: File too large; check .*\n", message)
    assert path.read_bytes().endswith(b"}\n")
    assert 900 < path.stat().st_size <= 1000
    assert [row["step"] for row in read(path)] == list(range(len(read(path))))


def test_a_kill_loses_no_row_that_was_written(scenes: tuple[Path, str]) -> None:
    root, _ = scenes
    assert (root / "end.txt").read_text() == str(int(signal.SIGKILL))
    assert [row["step"] for row in read(root / "killed.jsonl")] == list(range(20))


def test_packages_are_imported_only_when_used(scenes: tuple[Path, str]) -> None:
    root, _ = scenes
    assert (root / "imported.txt").read_text() == "[]"


def test_scalars_are_named_like_curves() -> None:
    assert dict(scalars(BLOCK)) == {"block/3/loss": 1.25, "block/3/bound_nats": -0.5}
    assert dict(scalars({**BLOCK, "block": None, "name": "shared"})) == {
        "block/shared/loss": 1.25,
        "block/shared/bound_nats": -0.5,
    }
    assert dict(scalars(STEP)) == {
        "step/lr": 5e-4,
        "step/images_per_second": 900.0,
        "step/step_seconds": 0.125,
    }
    assert dict(scalars(EVALUATION)) == {
        "evaluation/test/error": 12.5,
        "evaluation/test/layer/1": 30.0,
        "evaluation/test/layer/2": 11.25,
        "evaluation/test/layer/3": 12.5,
        "evaluation/test/ensemble/uniform": 11.0,
        "evaluation/test/ensemble/linear": 10.5,
    }
    assert list(scalars({"kind": "step", "step": 1, "flag": True, "text": "x"})) == []


def table(text: str) -> list[dict[str, str]]:
    header, *lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def evaluation(step: int, epoch: float, error: float, split: str = "test") -> dict[str, object]:
    return {**EVALUATION, "step": step, "epoch": epoch, "error": error, "split": split}


def test_plain_form_has_one_aligned_line_an_epoch() -> None:
    stream = io.StringIO()
    with make_console(stream, total_steps=30, epochs=3) as console:
        for step in range(1, 31):
            console.step(step, epoch=step / 10, loss=float(step), images_per_second=1234.4, error=100.0 - 2 * step)
            if step % 10 == 0:
                console.evaluation(evaluation(step, step / 10, 50.0 - step))
                assert len(stream.getvalue().splitlines()) == 1 + step // 10, "the line comes at once"
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    assert len({len(line) for line in text.splitlines()}) == 1
    rows = table(text)
    assert [row["epoch"] for row in rows] == ["1.00", "2.00", "3.00"]
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert [row["loss"] for row in rows] == ["5.5000", "15.5000", "25.5000"]
    assert [row["train error"] for row in rows] == ["89.00%", "69.00%", "49.00%"]
    assert [row["test error"] for row in rows] == ["40.00%", "30.00%", "20.00%"]
    assert {row["best layer"] for row in rows} == {"2 (11.25%)"}
    assert {row["images/s"] for row in rows} == {"1234"}
    assert all(re.fullmatch(r"\d+:\d\d:\d\d", row["time left"]) for row in rows)
    assert rows[-1]["time left"] == "0:00:00"


def test_plain_form_without_evaluations_still_shows_every_epoch() -> None:
    stream = io.StringIO()
    console = make_console(stream, total_steps=25, epochs=2.5)
    for step in range(1, 26):
        console.step(step, epoch=step / 10, loss=None, images_per_second=10.0)
    console.close()
    console.close()
    rows = table(stream.getvalue())
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    assert {row["loss"] for row in rows} == {row["test error"] for row in rows} == {"-"}


def test_plain_form_shows_a_second_split_in_lines_of_its_own() -> None:
    stream = io.StringIO()
    with make_console(stream, total_steps=2, epochs=1) as console:
        console.note("method dcl")
        console.evaluation(evaluation(0, 0.0, 90.0))
        console.step(2, epoch=1.0, loss=0.5, images_per_second=10.0)
        console.evaluation(evaluation(2, 1.0, 15.0, split="validation"))
        console.evaluation(evaluation(2, 1.0, 16.0))
    first, second, *lines, last = stream.getvalue().splitlines()
    assert first == "method dcl"
    assert second == "test error 90.00% at step 0, best layer 2 (11.25%)"
    assert table("\n".join(lines))[0]["validation error"] == "15.00%"
    assert last == "test error 16.00% at step 2, best layer 2 (11.25%)"


def test_plain_form_tells_the_time_left_of_a_resumed_run() -> None:
    stream = io.StringIO()
    with make_console(stream, total_steps=1_000, epochs=10) as console:
        console.step(899, epoch=8.99, loss=1.0, images_per_second=10.0)
        time.sleep(0.2)
        console.step(900, epoch=9.0, loss=1.0, images_per_second=10.0)
    # Two steps took 0.2 seconds, so a hundred take ten and a little; counted from step 0 it would be none.
    hours, minutes, seconds = map(int, table(stream.getvalue())[0]["time left"].split(":"))
    assert 10 <= 3600 * hours + 60 * minutes + seconds < 60


def show_a_run(stream: TextIO) -> None:
    with make_console(stream, total_steps=20, epochs=2) as console:
        console.note("a [bold]note[/bold]")
        for step in range(11, 21):
            console.step(step, epoch=step / 10, loss=step / 4, images_per_second=321.0, error=50.0)
            print('{"json": true}')
            time.sleep(0.01)
            if step == 15:
                console.evaluation(evaluation(15, 1.5, 12.5))


def received(descriptors: tuple[int, int]) -> str:
    """Show a run at the writing end of a pipe or terminal and return what the reading end gets."""
    reading, writing = descriptors
    chunks: list[bytes] = []

    def drain() -> None:
        # A terminal whose other end is closed raises EIO, a pipe gives nothing.
        with suppress(OSError):
            while chunk := os.read(reading, 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(writing, "w") as stream:
        show_a_run(stream)
    reader.join(timeout=30)
    os.close(reading)
    return b"".join(chunks).decode()


def test_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = received(os.pipe())
    assert "\r" not in shown
    assert "\x1b" not in shown
    note, lines = shown.split("\n", 1)
    assert note == "a [bold]note[/bold]"
    rows = table(lines)
    assert [row["test error"] for row in rows] == ["12.50%", "-"]
    assert [row["step"] for row in rows] == ["15", "20"]
    assert capsys.readouterr() == ('{"json": true}\n' * 10, "")


def test_terminal_gets_a_bar_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    shown = received(pty.openpty())
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "a [bold]note[/bold]" in plain
    last = [line for line in re.split(r"[\r\n]+", plain) if "epoch" in line][-1]
    assert "epoch 2/2" in last
    assert "20/20" in last
    assert "loss 5.0000" in last
    assert "test error 12.50%" in last
    assert "321 images/s" in last
    assert re.search(r"\d\d:\d\d left", last)
    assert "━" in last
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    assert capsys.readouterr() == ('{"json": true}\n' * 10, ""), "standard output is left alone"


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = received(pty.openpty())
    assert "\x1b" not in shown
    assert "train error" in shown


def test_unknown_sinks_are_refused(tmp_path: Path) -> None:
    assert sinks_from([], tmp_path) == []
    with pytest.raises(ValueError, match=r"tensorboard, wandb, got 'tensorbord' \(did you mean 'tensorboard'"):
        sinks_from(["tensorbord"], tmp_path)
    with pytest.raises(ValueError, match="each of its entries once, got 'wandb' twice"):
        sinks_from(["wandb", "wandb"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=re.escape(f'pip install "localprop[{name}]"')):
        sinks_from([name], tmp_path)


def test_tensorboard_curves_come_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = tmp_path / "metrics.jsonl"
    with Recorder(path, sinks_from(["tensorboard"], tmp_path)) as recorder:
        for step in (1, 2, 3):
            for row in ROWS:
                recorder.write({**row, "step": step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = {name for row in ROWS for name, _ in scalars(row)}
    assert set(events.Tags()["scalars"]) == expected
    for row in ROWS:
        for name, value in scalars(row):
            curve = events.Scalars(name)
            assert [point.step for point in curve] == [1, 2, 3]
            assert [point.value for point in curve] == pytest.approx([value] * 3, rel=1e-6)


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resumed_at, steps, loss in ((None, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        (sink,) = sinks_from(["tensorboard"], tmp_path, resumed_at=resumed_at)
        for step in steps:
            sink.write({**BLOCK, "step": step, "loss": loss})
        sink.close()
        if resumed_at is None:
            time.sleep(1.1)  # event files are told apart by the second
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("block/3/loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


WANDB_CODE = """
import json, pathlib, sys
from localprop.record import sinks_from
(sink,) = sinks_from(["wandb"], pathlib.Path(sys.argv[1]), name="trial", config={"method": "dcl"})
for row in json.loads(sys.argv[2]):
    sink.write(row)
sink.close()
"""


def test_wandb_runs_offline_without_a_login(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = run_python(WANDB_CODE, tmp_path, json.dumps(ROWS), HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "neither WANDB_MODE nor WANDB_API_KEY is set, so the run stays offline" in done.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    content = log.read_bytes()
    for name in ("block/3/loss", "evaluation/test/layer/2", "step/images_per_second", "trial", "method"):
        assert name.encode() in content


def test_wandb_mode_of_the_user_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Recorder(tmp_path / "metrics.jsonl", sinks_from(["wandb"], tmp_path)) as recorder:
        recorder.write(STEP)
    assert "stays offline" not in caplog.text
    assert not list(tmp_path.glob("wandb/offline-run-*"))


def test_wandb_that_cannot_start_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: object) -> None:
        raise wandb.Error("api_key not configured\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match=r"^log 'wandb' could not start a run: api_key not configured; set"):
        sinks_from(["wandb"], tmp_path)


def exhibited() -> list[Picture | Points]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 6, 6, generator=generator)
    return [
        Picture("filters of the first layer", torch.rand(3, 9, 7, generator=generator)),
        Points("label embeddings, shared", torch.randn(3, 4, generator=generator), ["a", "b\tc\nd", "<b>é"], None),
        Points("features of conv2", torch.randn(5, 4, generator=generator), list("abcab"), images),
    ]


def test_tensorboard_shows_pictures_and_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture, labels, features = exhibited()
    for again in (False, True):  # a resumed run shows a step again
        with Recorder(tmp_path / "metrics.jsonl", sinks_from(["tensorboard"], tmp_path)) as recorder:
            assert recorder.shows
            for exhibit in (picture, labels, features):
                recorder.show(exhibit, 10)
            if not again:
                recorder.show(labels, 20)
    assert capsys.readouterr().out == ""
    directory = tmp_path / "tensorboard"
    events = accumulator.EventAccumulator(str(directory)).Reload()
    (shown, *_) = events.Images(picture.name)
    with Image.open(io.BytesIO(shown.encoded_image_string)) as image:
        assert image.size == (7, 9)
        np.testing.assert_allclose(np.asarray(image) / 255, picture.pixels.permute(1, 2, 0), atol=1 / 255)
    for exhibit, tag in ((labels, "label-embeddings-shared"), (features, "features-of-conv2")):
        place = directory / "00010" / tag
        vectors = np.loadtxt(place / "tensors.tsv", delimiter="\t", ndmin=2)
        np.testing.assert_allclose(vectors, exhibit.vectors, rtol=1e-5)
        assert len((place / "metadata.tsv").read_text(encoding="utf-8").splitlines()) == len(exhibit.labels)
    assert Image.open(directory / "00010" / "features-of-conv2" / "sprite.png").size == (18, 18)
    assert "label-embeddings-shared" in (directory / "projector_config.pbtxt").read_text()


WANDB_SHOW = """
import pathlib, sys
from localprop.record import sinks_from
from tests.unit.test_record import exhibited
(sink,) = sinks_from(["wandb"], pathlib.Path(sys.argv[1]))
for exhibit in exhibited():
    sink.show(exhibit, 10)
sink.close()
"""


def test_wandb_shows_pictures_and_points_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = run_python(WANDB_SHOW, tmp_path, HOME=str(tmp_path / "home"), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [path.suffix for path in run.glob("files/media/images/filters*")] == [".png"]
    _, labels, features = exhibited()
    for exhibit in (labels, features):
        (file,) = run.glob(f"files/media/table/{exhibit.name}*.table.json")
        table = json.loads(file.read_text(encoding="utf-8"))
        assert [row[0] for row in table["data"]] == list(exhibit.labels)
        np.testing.assert_allclose([row[-4:] for row in table["data"]], exhibit.vectors, rtol=1e-6)
        assert table["columns"][-4:] == ["x0", "x1", "x2", "x3"]
