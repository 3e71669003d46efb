"""predict, as a user runs it: files, folders, tables, pictures, and weights that were learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import localprop
from localprop.cli import main

TRAIN = [
    *("train", "--method", "pred", "--model", "conv", "--model.width", "0.0625", "--data", "fashion-mini"),
    *("--epochs", "1", "--limit-batches", "4", "--batch-size", "64", "--threads", "1", "--device", "cpu"),
    *("--validation", "0.1", "--ensemble", "learned", "--out"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("predict") / "run"
    assert main([*TRAIN, str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = localprop.data.load("fashion-mini").test.images
    directory = tmp_path_factory.mktemp("images")
    (directory / "inner").mkdir()
    (directory / ".hidden").mkdir()
    for number, name in enumerate(["b.png", "a.JPG", "inner/<b>&$x$.png", ".hidden/c.png", ".d.png"]):
        Image.fromarray(images[number, 0].numpy()).save(directory / name)
    (directory / "notes.txt").write_text("not an image")
    return directory


def test_a_folder_stands_for_its_images_in_order(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(run), str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(row["image"] for row in rows)) == [
        str(folder / name) for name in ("a.JPG", "b.png", "inner/<b>&$x$.png")
    ]
    assert main(["predict", str(run), str(folder / "b.png"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    for row, same in zip(alone, [row for row in rows if row["image"].endswith("b.png")], strict=True):
        assert row["class"] == same["class"]
        assert row["probabilities"] == pytest.approx(same["probabilities"], abs=1e-5)


def test_the_table_has_a_row_an_image_with_the_networks_answer_first(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["predict", str(run), str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["predict", str(run), str(folder)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["image", "answer", "probability"]
    assert header.endswith("ensemble (learned)")
    answers = [row for row in rows if row["layer"] == "network"]
    assert len(lines) == len(answers) == 3
    for line, row in zip(lines, answers, strict=True):
        assert line.startswith(row["image"])
        assert line.removeprefix(row["image"]).strip().startswith(row["class"])
        assert f"{row['probability']:.4f}" in line


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_of_what_every_layer_says(run: Path, folder: Path, suffix: str, tmp_path: Path):
    files = [str(folder / "b.png")] * 17 + [str(folder / "inner" / "<b>&$x$.png")]
    picture = tmp_path / f"said.{suffix}"
    assert main(["predict", str(run), *files, "--picture", str(picture)]) == 0
    if suffix == "png":
        with Image.open(picture) as image:
            assert min(image.size) > 500
    else:
        text = picture.read_text()
        assert "2 more images are not shown" in text
        assert text.count("<image ") == 2 * 16


def test_learned_weights_are_those_of_the_finished_run(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    final = json.loads((run / "final.json").read_text())
    weights = final["learned_weights"]
    assert sum(weights) == pytest.approx(1)
    assert final["ensemble_error"] == final["ensemble_errors"]["learned"]
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["learned_weights"] == pytest.approx(weights, abs=1e-4)
    assert found["ensemble_errors"] == final["ensemble_errors"]
    assert main(["predict", str(run), str(folder / "b.png"), "--json"]) == 0
    *blocks, ensemble, _ = json.loads(capsys.readouterr().out)
    for name, value in ensemble["probabilities"].items():
        expected = sum(weight * row["probabilities"][name] for weight, row in zip(weights, blocks, strict=True))
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("content", [None, "{}", "[", '{"learned_weights": null}', '{"learned_weights": [2, 0, 0]}'])
def test_weights_that_are_not_there_are_told(
    content: str | None, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "checkpoint"):
        (copy / name).symlink_to(run / name)
    if content is not None:
        (copy / "final.json").write_text(content)
    assert main(["predict", str(copy), str(folder)]) == 2
    error = capsys.readouterr().err
    assert "final.json" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict", "{run}", "{empty}"], "no images in this directory; they end in .png"),
        (["predict", "{run}", "{folder}/notes.txt"], "is no image that can be read"),
        (["predict", "{run}", "{folder}", "--picture", "{folder}/a.pdf"], "--picture"),
        (["predict", "{run}", "{folder}", "--picture", "{empty}/none/a.png"], "there is no directory"),
        ([*TRAIN[:-5], "--ensemble", "learned", "--out", "{empty}/run"], "--ensemble learned: there are no held-out"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], told: str, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([word.format(run=run, folder=folder, empty=tmp_path) for word in words]) == 2
    assert told in capsys.readouterr().err
