"""explain, as a user runs it."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from localprop.analysis.explain import ANALYSES
from localprop.analysis.subject import load_subject
from localprop.cli import main
from localprop.data import CATALOGUE
from localprop.train import stored

DICTIONARY = {"embeddings", "embeddings-over-training", "confusion", "saliency"}


def train(directory: Path, method: str, *words: str) -> Path:
    tiny = ["--model", "conv", "--model.width", "0.125", "--batch-size", "32", "--limit-batches", "3", "--threads", "1"]
    assert main(["train", "--method", method, *tiny, "--epochs", "1", "--out", str(directory), *words]) == 0
    return directory


@pytest.fixture(scope="module")
def dcl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("explain") / "dcl", "dcl")


@pytest.fixture(scope="module")
def explained(dcl: Path) -> dict[str, Any]:
    assert main(["explain", str(dcl)]) == 0
    content: dict[str, Any] = json.loads((dcl / "explain" / "explain.json").read_text())
    return content


def test_explain__writes_rows_and_a_picture_of_every_analysis_that_fits(dcl: Path, explained: dict[str, Any]) -> None:
    assert set(explained["analyses"]) == set(ANALYSES) - {"super-labels"}
    assert explained["skipped"] == {"super-labels": "fashion-mini has no super-classes; cifar100 has"}
    for name, analysis in explained["analyses"].items():
        assert analysis["rows"], name
        assert len({tuple(row) for row in analysis["rows"]}) == 1, name
        assert Image.open(dcl / "explain" / f"{name}.png").size[0] > 150
    assert (explained["method"], explained["train_images"], explained["test_images"]) == ("dcl", 96, 96)


def test_explain__finds_what_the_run_is(dcl: Path, explained: dict[str, Any]) -> None:
    rows = {name: analysis["rows"] for name, analysis in explained["analyses"].items()}
    blocks = ["conv1", "conv2", "classifier"]
    for name in ("collapse", "cka", "probes", "information", "gradients"):
        assert [row["name"] for row in rows[name]] == blocks
    assert [rows["cka"][index][block] for index, block in enumerate(blocks)] == pytest.approx([1, 1, 1])
    assert all(row["nc1"] > 0 and 0 <= row["nc4_test"] <= 1 for row in rows["collapse"])
    assert [row["nc3"] is None for row in rows["collapse"]] == [False, False, True]
    assert rows["gradients"][-1]["cosine"] == pytest.approx(1)
    assert [row["dictionary"] for row in rows["embeddings"]] == ["shared"]
    assert [row["pairs"] for row in rows["confusion"]] == [45, 45]
    assert {row["name"] for row in rows["saliency"]} == {"conv1", "conv2"}
    assert rows["filters"][0]["size"] == "1 x 3 x 3"


def test_explain__saliency_averages_to_the_block_s_logit(dcl: Path, explained: dict[str, Any]) -> None:
    subject = load_subject(dcl, images=5000)
    logits = subject.test_features.logits
    for row in explained["analyses"]["saliency"]["rows"]:
        own = logits[row["block"]]
        assert own is not None
        values, labels = own[row["image"]].topk(2)
        assert [subject.run.facts.class_names[int(label)] for label in labels] == [row["first"], row["second"]]
        assert row["first_saliency"] == pytest.approx(float(values[0]), rel=1e-4)


def test_explain__of_backprop_says_what_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "bp", "bp")
    capsys.readouterr()
    assert main(["explain", str(run), "--out", str(tmp_path / "elsewhere"), "--images", "40", "--json"]) == 0
    out, told = capsys.readouterr()
    content = json.loads(out)
    assert set(content["skipped"]) == {*DICTIONARY, "super-labels", "gradients"}
    assert "embeddings: skipped, bp has no label embeddings" in told
    assert content == json.loads((tmp_path / "elsewhere" / "explain.json").read_text())
    assert not (run / "explain").exists()
    hidden = content["analyses"]["collapse"]["rows"][-2]
    assert hidden["nc3"] is not None  # the classifier reads this block's averages
    assert hidden["nc4_test"] is not None


def test_explain__only_what_was_asked_for_and_the_same_again(
    dcl: Path, explained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(dcl), "--only", "filters, cka", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cka.png", "explain.json", "filters.png"]
    found = json.loads((tmp_path / "explain.json").read_text())["analyses"]
    assert found == {name: explained["analyses"][name] for name in ("filters", "cka")}
    out = capsys.readouterr().out
    assert "cka: how alike" in out
    assert "conv1" in out


def test_explain__of_flat_blocks(tmp_path: Path) -> None:
    run = train(tmp_path / "fc", "dcl", "--model", "fc")
    assert main(["explain", str(run), "--only", "collapse,filters,gradients,confusion"]) == 0
    content = json.loads((run / "explain" / "explain.json").read_text())
    assert all(row["nc3"] is not None for row in content["analyses"]["collapse"]["rows"][:-1])
    assert content["analyses"]["filters"]["rows"][0]["size"] == "1 x 28 x 28"


def write_cifar100(directory: Path) -> None:
    """Write two training images and one test image of every class."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    for split, count in (("train", 200), ("test", 100)):
        rows = []
        for index in range(count):
            file = io.BytesIO()
            Image.fromarray(pixels[index]).save(file, "png")
            rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}.png"}, "label": index % 100})
        pq.write_table(pa.Table.from_pylist(rows), directory / f"cifar100-{split}.parquet")


@pytest.mark.slow
def test_explain__of_a_hundred_classes_in_super_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path)
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path))
    several = ["--data", "cifar100", "--method.embeddings-per-class", "2"]
    run = train(tmp_path / "run", "dcl", *several)
    assert main(["explain", str(run), "--only", "embeddings,confusion,super-labels,collapse,saliency"]) == 0
    found = json.loads((run / "explain" / "explain.json").read_text())["analyses"]
    embeddings = found["embeddings"]["rows"][0]
    assert (embeddings["classes"], embeddings["neighbours"]) == (100, 4)
    assert embeddings["chance"] == pytest.approx(4 / 99)
    assert embeddings["purity"] < 0.3  # drawn at random, and hardly trained
    assert len(found["embeddings"]["t_sne"]) == 100
    for row in found["super-labels"]["rows"]:
        assert row["super"] <= row["naive"]
        assert row["chance"] == 95
    assert all(row["nc3"] is None for row in found["collapse"]["rows"][:2])  # two embeddings of a class: no one vector


def test_explain__of_a_method_whose_blocks_are_no_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "ff", "ff")
    assert main(["explain", str(run), "--images", "20"]) == 0
    told = capsys.readouterr().err
    assert "collapse: skipped, ff: its blocks read labelled inputs" in told
    assert "gradients: skipped, ff: its blocks read labelled inputs" in told
    assert "confusion: skipped, ff has no label embeddings" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "not a run"),
        (["{run}", "--only", "probs"], "--only probs: no such analysis (did you mean 'probes'?)"),
        (["{run}", "--only", "super-labels"], "--only super-labels: fashion-mini has no super-classes"),
        (["{run}", "--images", "0"], "--images 0: must be at least 1"),
        (["{run}", "--images", "few"], "--images"),
        (["{run}", "--only", "cka", "--images", "3"], "at least 4 samples"),
        (["{run}", "--out", "{run}/final.json"], "final.json"),
        (["{run}", "--epochs", "2"], "does not take this"),
    ],
)
def test_explain__mistakes_are_one_line(
    dcl: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    capsys.readouterr()
    assert main(["explain", *(word.replace("{run}", str(dcl)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_explain__of_few_images_skips_what_needs_more(dcl: Path, tmp_path: Path) -> None:
    assert main(["explain", str(dcl), "--images", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "explain.json").read_text())
    assert set(found["analyses"]) == {*DICTIONARY, "filters", "memorisation"}
    chosen = ["--images", "5", "--only", "collapse,cka,probes,information,gradients"]
    assert main(["explain", str(dcl), *chosen, "--out", str(tmp_path)]) == 0


def test_explain__of_a_diverged_network_says_so(
    dcl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = stored.load_run

    def diverged(*args: Any, **settings: Any) -> stored.StoredRun:
        run = original(*args, **settings)
        with torch.no_grad():
            for parameter in run.rule.parameters():
                parameter.fill_(math.nan)
        return run

    monkeypatch.setattr("localprop.analysis.subject.load_run", diverged)
    assert main(["explain", str(dcl), "--out", str(tmp_path / "nan"), "--images", "20"]) == 0
    told = capsys.readouterr().err
    for name in ("collapse", "cka", "probes", "information", "embeddings", "confusion", "filters"):
        assert f"{name}: skipped" in told
    assert "must be finite, got NaN or infinity; the network that made them has diverged" in told


def test_explain__against_another_run_compares_their_blocks(dcl: Path, explained: dict[str, Any], tmp_path: Path):
    other = train(tmp_path / "pred", "pred", "--seed", "3")
    words = ["explain", str(dcl), "--only", "cka", "--out", str(tmp_path / "out")]
    assert main([*words, "--against", str(other)]) == 0
    found = json.loads((tmp_path / "out" / "explain.json").read_text())
    cka = found["analyses"]["cka"]
    assert found["against"] == str(other)
    assert cka["against"] == "pred"
    assert cka["columns"] == ["conv1", "conv2", "classifier"]
    assert all(abs(value) < 1 - 1e-6 for row in cka["matrix"] for value in row)
    assert main([*words, "--against", str(dcl), "--out", str(tmp_path / "self")]) == 0
    same = json.loads((tmp_path / "self" / "explain.json").read_text())["analyses"]["cka"]["matrix"]
    np.testing.assert_allclose(same, explained["analyses"]["cka"]["matrix"], rtol=1e-9)


def test_explain__against_a_run_on_other_images_is_refused(
    dcl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = train(tmp_path / "small", "pred", "--image-size", "14")
    assert main(["explain", str(dcl), "--against", str(other)]) == 2
    assert f"--against {other}: was trained on images of shape (1, 14, 14)" in capsys.readouterr().err


def test_explain__reads_the_nuisance_that_the_data_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_mnist(tmp_path / "data", train=240, test=120)
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path / "data"))
    for name, size in (("coloured-digits", (200, 100)), ("textured-digits", (200, 100))):
        entry = replace(CATALOGUE[name], num_train=size[0], num_test=size[1])
        monkeypatch.setitem(CATALOGUE, name, entry)
    run = train(tmp_path / "run", "pred", "--data", "coloured-digits", "--data.random-labels", "0.5")
    words = ["explain", str(run), "--only", "information,memorisation"]
    assert main(words) == 0
    found = json.loads((run / "explain" / "explain.json").read_text())["analyses"]
    assert found["information"]["nuisance"] == "colour"
    assert 0 < found["information"]["nuisance_class_nats"] < 1.2  # few images: that of independent labels is 0.42
    assert found["information"]["rows"][0]["nuisance_nats"] > 0.5  # the colour is plain to see
    memorised = found["memorisation"]
    assert 20 < memorised["wrong_labels"] < 70
    assert [row["name"] for row in memorised["rows"]] == ["conv1", "conv2", "classifier", "network"]
    assert all(0 <= row["by_heart_error"] <= 100 for row in memorised["rows"])
    textured = train(tmp_path / "textured", "pred", "--data", "textured-digits")
    assert main(["explain", str(textured), "--only", "information"]) == 0
    found = json.loads((textured / "explain" / "explain.json").read_text())["analyses"]
    assert found["information"]["nuisance"] == "texture"


def write_mnist(directory: Path, *, train: int, test: int) -> None:
    """Write a small MNIST of light strokes on black."""
    directory.mkdir()
    for split, count in (("train", train), ("test", test)):
        rows = []
        for index in range(count):
            pixels = np.zeros((28, 28), dtype=np.uint8)
            pixels[8:20, 5 + index % 10 : 7 + index % 10] = 255
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}.png"}, "label": index % 10})
        pq.write_table(pa.Table.from_pylist(rows), directory / f"mnist-{split}.parquet")
