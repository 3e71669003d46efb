"""Checkpoints against real kills, real full disks and hostile files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from localprop.train import checkpoint
from localprop.train.checkpoint import CheckpointError, load, newest, save, weights_sha256

# One process imports torch, then forks a child per scenario. Each child patches its own copy only.
SERVER = """
import json, os, pathlib, resource, sys, warnings
import torch
from localprop.train import checkpoint
from tests.deaths import after_bytes, around

warnings.filterwarnings("ignore", category=DeprecationWarning)
torch.set_num_threads(1)
SIZE = 50_000

def state(step):
    return {"step": step, "weights": torch.full((SIZE,), float(step))}

POINTS = {
    "first byte": lambda: after_bytes(1),
    "inside the header": lambda: after_bytes(400),
    "inside a tensor": lambda: after_bytes(100_000),
    "inside the directory of the archive": lambda: after_bytes(4 * SIZE + 1500),
    "before fsync": lambda: around(os, "fsync", "before"),
    "after fsync": lambda: around(os, "fsync", "after"),
    "before replace": lambda: around(os, "replace", "before"),
    "after replace": lambda: around(os, "replace", "after"),
    "before the directory's fsync": lambda: around(os, "fsync", "before", 2),
    "before pruning": lambda: around(os, "fsync", "after", 2),
    "after the first deletion": lambda: around(pathlib.Path, "unlink", "after", 1),
    "before the second deletion": lambda: around(pathlib.Path, "unlink", "before", 2),
}

def killed(directory, point):
    for step in (1, 2, 3):
        checkpoint.save(directory, state(step), step=step, keep=3)
    POINTS[point]()
    checkpoint.save(directory, state(4), step=4, keep=1)

def too_large(directory, point):
    checkpoint.save(directory, state(1), step=1, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    attempt(directory)

def unwritable(directory, point):
    checkpoint.save(directory, state(1), step=1, keep=2)
    os.chdir(directory)
    os.chmod(".", 0o555)
    if os.getuid() == 0:
        os.setuid(65534)
    attempt(pathlib.Path("."))

def attempt(directory):
    try:
        checkpoint.save(directory, state(2), step=2, keep=2)
    except checkpoint.CheckpointError as error:
        (directory.parent / "message").write_text(str(error)) if directory.name else print(error, flush=True)

def fork(scenario, directory, point=""):
    child = os.fork()
    if child == 0:
        try:
            scenario(directory, point)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

root = pathlib.Path(sys.argv[1])
ends, sizes = {}, {}
for point in POINTS:
    (root / point).mkdir()
    ends[point] = fork(killed, root / point / "checkpoint", point)
    sizes[point] = [path.stat().st_size for path in (root / point / "checkpoint").glob(".step-*")]
for name, scenario in (("too large", too_large), ("unwritable", unwritable)):
    (root / name).mkdir()
    ends[name] = fork(scenario, root / name / "checkpoint")
(root / "ends.json").write_text(json.dumps(ends))
(root / "sizes.json").write_text(json.dumps(sizes))
"""

BEFORE_REPLACE = (
    "first byte",
    "inside the header",
    "inside a tensor",
    "inside the directory of the archive",
    "before fsync",
    "after fsync",
    "before replace",
)
AFTER_REPLACE = (
    "after replace",
    "before the directory's fsync",
    "before pruning",
    "after the first deletion",
    "before the second deletion",
)
SIZE = 50_000


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def some_state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((SIZE,), float(step))}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], str]:
    root = tmp_path_factory.mktemp("kills")
    script = root / "server.py"
    script.write_text(SERVER)
    sources = [str(Path(checkpoint.__file__).parents[2]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(script), str(root)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads((root / "ends.json").read_text()), done.stdout


@pytest.mark.parametrize("point", BEFORE_REPLACE + AFTER_REPLACE)
def test_kill_leaves_a_complete_checkpoint(scenes: tuple[Path, dict[str, int], str], point: str) -> None:
    root, ends, _ = scenes
    directory = root / point / "checkpoint"
    assert ends[point] == -signal.SIGKILL
    temporaries = [name for name in names(directory) if ".tmp-" in name]
    assert len(temporaries) == (point in BEFORE_REPLACE)

    expected = 3 if point in BEFORE_REPLACE else 4
    path = newest(directory)
    assert path is not None
    state = load(path)
    assert state["step"] == expected
    assert torch.equal(state["weights"], torch.full((SIZE,), float(expected)))

    save(directory, some_state(5), step=5, keep=1)
    assert names(directory) == ["step-00000005.pt"]
    assert load(directory / "step-00000005.pt")["step"] == 5


def test_kills_happen_where_they_say(scenes: tuple[Path, dict[str, int], str]) -> None:
    root, _, _ = scenes
    sizes = json.loads((root / "sizes.json").read_text())
    assert sizes["first byte"] == [1]
    assert sizes["inside the header"] == [400]
    assert sizes["inside a tensor"] == [100_000]
    whole = sizes["before replace"][0]
    assert 4 * SIZE + 1500 == sizes["inside the directory of the archive"][0] < whole
    assert sizes["before fsync"] == sizes["after fsync"] == [whole]


def test_file_size_limit_keeps_the_last_good_checkpoint(scenes: tuple[Path, dict[str, int], str]) -> None:
    root, ends, _ = scenes
    assert ends["too large"] == 0
    message = (root / "too large" / "message").read_text()
    assert "File too large" in message
    assert "last good checkpoint is step-00000001.pt" in message
    assert "free space and run again with --resume auto" in message
    assert "\n" not in message
    assert names(root / "too large" / "checkpoint") == ["step-00000001.pt"]
    assert load(root / "too large" / "checkpoint" / "step-00000001.pt")["step"] == 1


def test_unwritable_directory_keeps_the_last_good_checkpoint(
    scenes: tuple[Path, dict[str, int], str],
) -> None:
    root, ends, output = scenes
    directory = root / "unwritable" / "checkpoint"
    directory.chmod(0o755)
    assert ends["unwritable"] == 0
    assert "Permission denied" in output
    assert "last good checkpoint is step-00000001.pt" in output
    assert names(directory) == ["step-00000001.pt"]


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(disk)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted")
    try:
        directory = disk / "checkpoint"
        for step in (1, 2):
            save(directory, some_state(step), step=step, keep=3)
        before = [path.read_bytes() for path in sorted(directory.iterdir())]
        large = {"weights": torch.zeros(SIZE * 2)}
        with pytest.raises(CheckpointError, match=r"No space left.*checkpoint is step-00000002\.pt"):
            save(directory, large, step=3, keep=9)
        assert names(directory) == ["step-00000001.pt", "step-00000002.pt"]
        assert [path.read_bytes() for path in sorted(directory.iterdir())] == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_stale_temporary_makes_room_before_the_write(tmp_path: Path) -> None:
    stale = tmp_path / ".step-00000007.pt.tmp-123456"
    stale.write_bytes(b"half")
    stranger = tmp_path / ".notes.tmp-1"
    stranger.write_bytes(b"mine")
    save(tmp_path, some_state(8), step=8, keep=1)
    assert names(tmp_path) == [".notes.tmp-1", "step-00000008.pt"]


def test_state_round_trip(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    state = {
        "model": model.state_dict(),
        "optimizers": {(0, "weights"): optimizer.state_dict(), (None, "shared"): {}},
        "schedule": schedule.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "python_rng": random.getstate(),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "plain": [None, True, 1, 2**80, 0.1, 1j, "s", b"b", (1,), {2}, OrderedDict(a=1), Counter("aab")],
    }
    back = load(save(tmp_path, state, step=0, keep=1))
    assert back.keys() == state.keys()
    assert weights_sha256(back["model"]) == weights_sha256(model.state_dict())
    assert back["schedule"] == state["schedule"]
    assert back["python_rng"] == state["python_rng"]
    assert back["plain"] == state["plain"]
    assert torch.equal(back["torch_rng"], state["torch_rng"])
    assert torch.equal(back["channels_last"], state["channels_last"])
    assert back["channels_last"].is_contiguous(memory_format=torch.channels_last)
    moments = back["optimizers"][(0, "weights")]["state"]
    for index, expected in optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[index][name], expected[name]) for name in expected)


def test_only_the_newest_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    for step in (5, 99_999_999, 100_000_000, 1_000_000_000):
        path = save(tmp_path, some_state(step), step=step, keep=2)
        assert newest(tmp_path) == path
    assert names(tmp_path) == ["step-100000000.pt", "step-1000000000.pt"]


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, {"value": 1}, step=3, keep=1)
    assert load(save(tmp_path, {"value": 2}, step=3, keep=1)) == {"value": 2}


def test_other_files_are_no_checkpoints_and_stay(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-12.pt", "step-00000009.pt.bak"):
        (tmp_path / name).write_text("mine")
    assert newest(tmp_path) is None
    save(tmp_path, some_state(1), step=1, keep=1)
    assert (tmp_path / "step-12.pt").read_text() == "mine"
    assert newest(tmp_path) == tmp_path / "step-00000001.pt"


def test_newest_of_nothing(tmp_path: Path) -> None:
    assert newest(tmp_path / "missing") is None
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoints in .*file: Not a directory"):
        newest(file)


@pytest.mark.parametrize(
    ("step", "keep", "message"),
    [(-1, 1, "step must be >= 0, got -1"), (1, 0, "keep must be >= 1, got 0")],
)
def test_bad_arguments(tmp_path: Path, step: int, keep: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "new", {}, step=step, keep=keep)
    assert not (tmp_path / "new").exists()


def test_a_step_back_is_refused(tmp_path: Path) -> None:
    save(tmp_path, some_state(10), step=10, keep=1)
    with pytest.raises(ValueError, match=r"step must be >= .*step-00000010\.pt, got 9"):
        save(tmp_path, some_state(9), step=9, keep=1)
    assert names(tmp_path) == ["step-00000010.pt"]


@pytest.mark.parametrize("value", [np.float64(1.0), np.arange(3), random.Random(0), nn.ReLU(), len, range(3)])
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"state\['a'\]\[1\]\['b'\] must be a tensor or a plain value, got"):
        save(tmp_path, {"a": [0, {"b": value}]}, step=1, keep=1)
    assert names(tmp_path) == []


def test_saving_without_checksums_is_refused(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        with pytest.raises(ValueError, match="set_crc32_options must be True"):
            save(tmp_path, {}, step=1, keep=1)
    finally:
        torch.serialization.set_crc32_options(True)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_truncation_is_noticed_at_any_length(tmp_path: Path) -> None:
    path = save(tmp_path, some_state(1), step=1, keep=1)
    whole = path.read_bytes()
    for length in (1, 3, 4, 30, 700, len(whole) // 2, len(whole) - 100, len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert ("is truncated or damaged" if length >= 4 else "is not a localprop checkpoint") in message
        assert message.endswith(f"delete {path} to start anew")


def test_a_flipped_byte_inside_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, some_state(1), step=1, keep=1)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert torch.load(path, weights_only=True)["state"]["weights"].ne(1).any(), "torch notices nothing itself"
    assert "is truncated or damaged" in refusal(path)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    state = {"step": 1, "weights": torch.arange(8.0)}
    path = save(tmp_path, state, step=1, keep=1)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            back = load(path)
        except CheckpointError:
            noticed += 1
        else:
            assert back["step"] == 1
            assert torch.equal(back["weights"], state["weights"])
    assert noticed > 50


def test_an_older_checkpoint_is_named_but_not_taken(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = save(tmp_path, some_state(step), step=step, keep=3)
    path.write_bytes(path.read_bytes()[:-50])
    assert newest(tmp_path) == path
    assert refusal(path).endswith(f"delete {path} to continue from step-00000002.pt")
    path.unlink()
    assert load(tmp_path / "step-00000002.pt")["step"] == 2


def foreign_tensors(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def foreign_list(path: Path) -> None:
    torch.save([1, 2], path)


def foreign_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def old_torch_format(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hello.txt", "hello" * 1000)


def text_file(path: Path) -> None:
    path.write_text("not a checkpoint\n")


def other_format(path: Path) -> None:
    torch.save({"format": "another-checkpoint", "version": 1, "state": {}}, path)


def no_version(path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "state": {}}, path)


def no_state(path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION}, path)


@pytest.mark.parametrize(
    "write",
    [
        foreign_tensors,
        foreign_list,
        foreign_module,
        old_torch_format,
        foreign_zip,
        text_file,
        other_format,
        no_version,
        no_state,
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, write: object) -> None:
    path = tmp_path / "step-00000004.pt"
    assert callable(write)
    write(path)
    message = refusal(path)
    assert "is not a localprop checkpoint" in message
    assert message.endswith(f"delete {path} to start anew")


def test_empty_missing_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000004.pt"
    assert "No such file" in refusal(path)
    path.touch()
    assert "is empty" in refusal(path)
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1, "states": {}}, path)
    assert "format version 2, newer than 1" in refusal(path)
    assert "upgrade localprop" in refusal(path)


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.crater),)


@pytest.mark.parametrize("form", ["torch archive", "old torch format", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, form: str) -> None:
    path, crater = tmp_path / "step-00000004.pt", tmp_path / "crater"
    payload = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": {"x": Bomb(crater)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch archive")

    assert "is not a localprop checkpoint" in refusal(path)
    assert not crater.exists()
    if form == "pickle":
        pickle.load(io.BytesIO(path.read_bytes()))
    else:
        torch.load(path, weights_only=False)
    assert crater.exists(), "the bomb was a dud"


def test_hash_ignores_memory_format_and_order() -> None:
    image = torch.randn(2, 3, 4, 5)
    state = {"a": image, "b": torch.arange(6).reshape(2, 3)}
    same = {
        "b": torch.arange(6).reshape(2, 3).t().contiguous().t(),
        "a": nn.Parameter(image.to(memory_format=torch.channels_last)),
    }
    assert weights_sha256(state) == weights_sha256(same)


def test_hash_ignores_strides() -> None:
    every_other = torch.arange(10.0)[::2]
    assert weights_sha256({"w": every_other}) == weights_sha256({"w": every_other.clone()})


def test_hash_is_the_same_in_every_release() -> None:
    state = {"w": torch.tensor([[1.0, -2.0]]), "n": torch.tensor(3)}
    plain = b'["n", "torch.int64", []]\n' + np.array(3, "<i8").tobytes()
    plain += b'["w", "torch.float32", [1, 2]]\n' + np.array([1.0, -2.0], "<f4").tobytes()
    assert weights_sha256(state) == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.tensor([1.0, 2.0])},
        {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"w": torch.tensor([[1.0, 2.0]])},
        {"w": torch.tensor([2.0, 1.0])},
        {"w": torch.tensor([1.0, 2.0 + 2**-22])},
        {"w": torch.tensor([1.0, 2.0]), "x": torch.empty(0)},
    ],
)
def test_hash_sees_every_difference(other: dict[str, torch.Tensor]) -> None:
    assert weights_sha256(other) != weights_sha256({"w": torch.tensor([1.0, 2.0])})


def test_hash_sees_the_sign_of_zero() -> None:
    assert weights_sha256({"w": torch.tensor(0.0)}) != weights_sha256({"w": torch.tensor(-0.0)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_hash_of_other_dtypes(dtype: torch.dtype) -> None:
    one, two = torch.tensor([[1, 0], [0, 1]]).to(dtype), torch.tensor([[1, 0], [1, 1]]).to(dtype)
    assert weights_sha256({"w": one}) == weights_sha256({"w": one.t().clone().t()})
    assert weights_sha256({"w": one}) != weights_sha256({"w": two})


def test_hash_resolves_lazy_conjugates() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert weights_sha256({"w": value.conj()}) == weights_sha256({"w": value.conj().resolve_conj()})
    assert weights_sha256({"w": value.conj()}) != weights_sha256({"w": value})
