"""export and load, as a user runs them."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import localprop
from localprop.cli import main
from localprop.export import check
from localprop.train import checkpoint

TINY = ["--model", "conv", "--model.width", "0.25", "--batch-size", "64", "--threads", "1", "--limit-batches", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "run"
    assert main(["train", "--method", "dcl", *TINY, "--epochs", "1", "--out", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def images() -> Tensor:
    return localprop.data.load("fashion-mini").test.images[:5] / 255


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", *words, "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that a mistake is answered with."""
    capsys.readouterr()
    assert main(["export", *words]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    [line] = shown.err.splitlines()
    return line


def leftovers(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()] if directory.exists() else []


# ---------------------------------------------------------------- what is written


def test_export__onnx_of_a_block_holds_no_later_block(
    run: Path, images: Tensor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    out = tmp_path / "new" / "first.onnx"
    content = found(capsys, str(run), "--to", "onnx", "--exit", "conv1", "--out", str(out))
    assert content["path"] == str(out)
    assert content["bytes"] == out.stat().st_size
    assert (content["exit"], content["outputs"], content["batch_sizes"]) == ("conv1", ["logits"], [1, 31])
    assert 0 <= content["largest_difference"] < 1e-6
    model = onnx.load(out)
    assert {weight.name.partition("blocks.")[2][:1] for weight in model.graph.initializer} <= {"0", ""}
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["class_names"][9] == "Ankle boot"
    assert (facts["method"], facts["exit"], facts["image_shape"]) == ("dcl", "conv1", [1, 28, 28])
    [given] = onnxruntime.InferenceSession(str(out)).run(None, {"images": images.numpy()})
    expected = localprop.load(run).exits(images)["conv1"]
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-5, atol=1e-5)
    assert leftovers(out.parent) == ["first.onnx"]


def test_export__pt2_of_all_exits(run: Path, images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    content = found(capsys, str(run), "--to", "pt2", "--exit", "all")
    assert content["path"] == str(run / "export" / "all.pt2")
    facts = {"localprop.json": ""}
    outputs = torch.export.load(content["path"], extra_files=facts).module()(images)
    assert list(outputs) == content["outputs"] == ["conv1", "conv2", "classifier", "logits"]
    assert json.loads(facts["localprop.json"])["outputs"] == content["outputs"]
    network = localprop.load(run)
    torch.testing.assert_close(outputs["logits"], network(images))
    torch.testing.assert_close({name: outputs[name] for name in network.block_names}, network.exits(images))


def test_export__a_folder_for_the_hub(
    run: Path, images: Tensor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "network"
    out.mkdir()  # an empty one may be there
    content = found(capsys, str(run), "--to", "safetensors", "--exit", "all", "--out", str(out))
    assert sorted(leftovers(out)) == ["README.md", "config.json", "model.safetensors"]
    assert leftovers(tmp_path) == ["network"]
    assert content["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    final = json.loads((run / "final.json").read_text())
    card = (out / "README.md").read_text()
    assert f"| the network's answer | {final['test_error']:g} |" in card
    assert f"| block conv2 | {final['layer_errors'][1]:g} |" in card
    network, own = localprop.load(out), localprop.load(run)
    assert torch.equal(network(images), own(images))
    assert network.exits(images).keys() == own.exits(images).keys()


def test_export__prints_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    capsys.readouterr()
    assert main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "x")]) == 0
    shown = capsys.readouterr()
    assert "largest_difference" in shown.out
    assert "largest difference to the run's own answers" in shown.err


def test_export__of_a_run_that_has_not_finished_has_no_numbers(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run, directory, ignore=shutil.ignore_patterns("final.json", "export"))
    content = found(capsys, str(directory), "--to", "safetensors")
    assert "had not finished" in (Path(content["path"]) / "README.md").read_text()


# ---------------------------------------------------------------- what is refused


def test_export__never_overwrites(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, folder = tmp_path / "there", tmp_path / "full"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    for out in (file, folder):
        for to in ("pt2", "safetensors"):
            assert f"--out {out}: exists already" in error(capsys, str(run), "--to", to, "--out", str(out))
    assert file.read_text() == (folder / "mine").read_text() == "mine"


def test_export__that_answers_otherwise_is_not_put_in_place(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TOLERANCE", 0.0)  # rounding is then too much
    line = error(capsys, str(run), "--to", "safetensors", "--out", str(tmp_path / "x"))
    assert "output 'logits' differs from the run's own" in line
    assert not leftovers(tmp_path)


@pytest.fixture
def full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
def test_export__to_a_full_disk_leaves_nothing(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = error(capsys, str(run), "--to", "safetensors", "--out", str(tmp_path / "x"))
    assert f"--out {tmp_path / 'x'}: cannot be written (File too large); free space" in line
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "onxx"], "--to onxx: must be one of onnx, pt2, safetensors (did you mean 'onnx'?)"),
        ([], "required: --to"),
        (["--to", "pt2", "--exit", "conv9"], "--exit conv9: no such block (did you mean"),
        (["--to", "pt2", "--exit", "3"], "--exit 3: no such block; there are conv1, conv2, classifier, or 0 to 2"),
        (["--to", "pt2", "--out", "/proc/nowhere/x.pt2"], "--out /proc/nowhere/x.pt2: cannot be written"),
        (["--to", "pt2", "--format"], "localprop export does not take this"),
    ],
)
def test_export__mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    line = error(capsys, str(run), *words)
    assert expected in line


def test_export__refuses_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "not a run of localprop" in error(capsys, str(tmp_path), "--to", "pt2")


def test_export__refuses_numbers_of_other_weights_and_answers_that_are_none(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    newest = checkpoint.newest(directory / "checkpoint")
    assert newest is not None
    state = dict(checkpoint.load(newest))
    state["rule"]["net.blocks.1.0.weight"].fill_(torch.nan)
    checkpoint.save(directory / "checkpoint", state, step=int(state["step"]) + 1, keep=1)
    words = (str(directory), "--to", "safetensors", "--out", str(tmp_path / "x"))
    assert "final.json: its numbers are of other weights" in error(capsys, *words)
    (directory / "final.json").write_text("{}")
    assert "final.json is not valid" in error(capsys, *words)
    (directory / "final.json").unlink()
    assert "the run's own answers are not finite" in error(capsys, *words)
    assert leftovers(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("to", "package", "extra"), [("onnx", "onnxscript", "onnx"), ("safetensors", "huggingface_hub", "hub")]
)
def test_export__says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, as where it is not installed
    line = error(capsys, str(run), "--to", to)
    assert f"--to {to}: needs {package}; install with: pip install 'localprop[{extra}]'" in line


# ---------------------------------------------------------------- load


def test_load__answers_as_evaluation_does(run: Path) -> None:
    network = localprop.load(str(run))
    test = localprop.data.load("fashion-mini").test
    predicted = network(test.images[:128] / 255).argmax(1)
    assert network.class_names[int(test.labels[0])]
    final = json.loads((run / "final.json").read_text())
    assert final["test_images"] == 128
    assert 100 * float((predicted != test.labels[:128]).float().mean()) == pytest.approx(final["test_error"])


def test_load__refuses_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run of localprop"):
        localprop.load(tmp_path)
    with pytest.raises(ValueError, match=r"no such directory; .*snapshot_download"):
        localprop.load("user/network")


MODEL_FILE = """
from torch import nn

def small(image_shape, num_classes):
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, num_classes)),
    )
"""


def test_load__imports_code_only_with_leave(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_exported.py").write_text(MODEL_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--method", "pred", "--model", "my_exported:small", "--limit-batches", "2", "--epochs", "1"]
    assert main(["train", *words, "--threads", "1", "--out", "run"]) == 0
    assert "--allow-imports" in error(capsys, "run", "--to", "safetensors")
    content = found(capsys, "run", "--to", "safetensors", "--exit", "0", "--allow-imports")
    with pytest.raises(ValueError, match="taken only with --allow-imports"):
        localprop.load(content["path"])
    assert localprop.load(content["path"], allow_imports=True).exit == 0
