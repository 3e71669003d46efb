"""What is recorded and shown of a network as it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import localprop
from localprop import models
from localprop.cli import main
from localprop.data.store import ImageSet
from localprop.functional.dictionary import effective_rank
from localprop.record import Picture, Points, read
from localprop.train.assemble import DataFacts
from localprop.train.exhibits import exhibits
from localprop.train.rows import dictionary_rows

FACTS = DataFacts(tuple("abcd"), (1, 28, 28), (0.3,), (0.2,))


def rule_of(method: str, model: object = None) -> localprop.Rule:
    torch.manual_seed(0)
    net = localprop.split(model or models.conv((1, 28, 28), 4, width=0.0625))
    return localprop.methods.build(method, net, num_classes=4, example=torch.zeros(2, 1, 28, 28)).eval()


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.eye(5, 7)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        (0.75**-0.75) * (0.25**-0.25)  # exp of the entropy of 3/4, 1/4
    )
    assert effective_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize(
    ("method", "names"), [("dcl", ["shared"]), ("dcl-ld", ["conv1", "conv2"]), ("pred", []), ("bp", [])]
)
def test_each_dictionary_has_a_row(method: str, names: list[str]):
    rule = rule_of(method)
    rows = dictionary_rows(rule, place={"step": 3, "epoch": 0.5})
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["block"] == (None if row["name"] == "shared" else rule.net.names.index(row["name"]))
        assert 1 <= row["effective_rank"] <= 4
        assert row["mean_norm"] > 0


def test_a_run_records_its_dictionaries_and_explains_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = [
        "--model",
        "conv",
        "--model.width",
        "0.0625",
        "--batch-size",
        "32",
        "--limit-batches",
        "3",
        "--threads",
        "1",
    ]
    run = tmp_path / "run"
    assert main(["train", "--method", "dcl-ld", *small, "--epochs", "2", "--threads", "1", "--out", str(run)]) == 0
    rows = [row for row in read(run / "metrics.jsonl") if row["kind"] == "dictionary"]
    assert [(row["step"], row["name"]) for row in rows] == [(3, "conv1"), (3, "conv2"), (6, "conv1"), (6, "conv2")]
    assert rows[0]["mean_norm"] != rows[2]["mean_norm"]
    assert main(["explain", str(run), "--only", "embeddings-over-training"]) == 0
    assert capsys.readouterr().out.count("conv1") == 2
    assert (run / "explain" / "embeddings-over-training.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("method", "model", "kinds"),
    [
        ("dcl", None, ["filters of the first layer", "label embeddings, shared", "features of conv2"]),
        ("pred", None, ["filters of the first layer", "features of conv2"]),
        ("ff", None, ["filters of the first layer"]),  # what its blocks make of an image alone says little
        ("pred", models.vit((1, 28, 28), 4, hidden=16, heads=2, depth=2), None),
    ],
)
def test_exhibits(method: str, model: object, kinds: list[str] | None):
    rule = rule_of(method, model)
    images = ImageSet(torch.randint(256, (300, 1, 28, 28), dtype=torch.uint8), torch.arange(300) % 4)
    shown = list(exhibits(rule, images, FACTS, torch.device("cpu")))
    if kinds is not None:
        assert [exhibit.name for exhibit in shown] == kinds
    for exhibit in shown:
        if isinstance(exhibit, Picture):
            assert 0 <= float(exhibit.pixels.min()) < float(exhibit.pixels.max()) <= 1
            continue
        assert isinstance(exhibit, Points)
        assert len(exhibit.vectors) == len(exhibit.labels) > 1
        assert exhibit.vectors.dtype == torch.float32
        if exhibit.images is not None:
            assert exhibit.images.shape == (256, 1, 28, 28)
            assert list(exhibit.labels[:5]) == list("abcda")
