"""Exports of every method and of many networks answer as the network itself, and hold no more than that takes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import localprop
from localprop.data.store import ImageSet
from localprop.export.card import model_card, train_command
from localprop.export.check import Sample, largest_difference, sample_of
from localprop.export.facts import describe, published_data, published_settings
from localprop.export.formats import FORMATS, Exported
from localprop.infer.trained import Exit, TrainedNetwork, read_exit, stored_tensors
from localprop.methods import CATALOGUE
from localprop.report.runs import Final
from localprop.train.assemble import DataFacts, build_rule
from localprop.train.config import config_from
from localprop.train.stored import StoredRun
from tests.traits import traits

CPU, NUM = torch.device("cpu"), 9
SMALL = {"model": "conv", "model.width": "0.1", "data": "mnist"}
NETWORKS: dict[str, tuple[dict[str, str], tuple[int, int, int]]] = {
    "fc": ({"model": "fc", "model.width": "0.016"}, (1, 16, 16)),
    "mlp": ({"model": "mlp", "model.width": "0.1"}, (1, 16, 16)),
    "vgg8b": ({"model": "vgg8b", "model.width": "0.0625"}, (3, 32, 32)),
    "resnet32": ({"model": "resnet32", "model.width": "0.25"}, (3, 32, 32)),
    "vit": ({"model": "vit", "model.width": "0.125"}, (3, 32, 32)),
    "mixer": ({"model": "mixer", "model.width": "0.1"}, (3, 32, 32)),
    "timm": ({"model": "timm:resnet18", "at": "stages"}, (3, 64, 64)),
    "torchvision": ({"model": "torchvision:mobilenet_v3_small", "at": "stages"}, (1, 64, 64)),
}


def images(shape: tuple[int, int, int]) -> ImageSet:
    drawn = torch.randint(0, 256, (NUM, *shape), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return ImageSet(drawn, torch.arange(NUM) % 4)


def run_of(method: str, shape: tuple[int, int, int] = (1, 16, 16), **flags: str) -> StoredRun:
    """Return a run of random weights and statistics; what an export must reproduce is not what they are."""
    if traits(method).model == "patches":
        flags = {"model": "patches", "model.width": "0.01", "model.stages": "2"}
    config = config_from({"method": method, **(flags or SMALL)})
    names = ("shirt", "<b>ankle</b> | boot", "a\n# b `c`", "\udcff\U0001f45f")
    facts = DataFacts(names, shape, (0.3,) * shape[0], (0.4,) * shape[0])
    rule = build_rule(config, facts, CPU)
    generator = torch.Generator().manual_seed(5)
    for parameter in rule.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    for name, buffer in rule.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return StoredRun(config, facts, rule.eval(), CPU, 0, Path())


def exported(run: StoredRun, exit: Exit) -> tuple[Exported, Sample]:
    sample = sample_of(run, images(run.facts.image_shape), exit)
    network = TrainedNetwork(run.rule, run.facts, exit)
    return Exported(run, network, describe(run, network, tuple(sample.expected)), None, False), sample


def written(to: str, run: StoredRun, exit: Exit, tmp_path: Path) -> tuple[Path, Exported, float]:
    """Export a run and return what was written, of what, and how far its answers are from the run's."""
    what, sample = exported(run, exit)
    path = tmp_path / to
    FORMATS[to].write(path, what)
    return path, what, largest_difference(sample, lambda x: FORMATS[to].run(path, x, what))


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("method", ["overlap", "clusters", "ff", "cafo-ce"])
def test_a_folder_of_all_exits_answers_as_the_run(method: str, tmp_path: Path) -> None:
    assert written("safetensors", run_of(method), "all", tmp_path)[2] < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CATALOGUE if name != "pff"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_method_is_exported(to: str, method: str, tmp_path: Path) -> None:
    assert written(to, run_of(method), "all", tmp_path)[2] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CATALOGUE if name != "pff"])
def test_every_method_is_exported_up_to_its_first_block_or_refused(method: str, tmp_path: Path) -> None:
    run = run_of(method)
    if not traits(method).hidden_predictions or traits(method).silent_blocks:
        with pytest.raises(ValueError, match="the block makes no prediction under method"):
            written("pt2", run, 0, tmp_path)
        return
    if method in ("ff", "symba"):
        with pytest.raises(ValueError, match="a pass from the image for every label"):
            written("pt2", run, 0, tmp_path)
        return
    assert written("pt2", run, 0, tmp_path)[2] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dcl", "predsim"])
@pytest.mark.parametrize("network", NETWORKS)
def test_many_networks_are_exported(network: str, method: str, tmp_path: Path) -> None:
    flags, shape = NETWORKS[network]
    assert written("onnx", run_of(method, shape, **flags), "all", tmp_path)[2] < 2e-5


@pytest.mark.slow
def test_a_method_of_many_rounds_is_exported(tmp_path: Path) -> None:
    run = run_of("pff", (1, 8, 8), model="mlp", **{"model.hidden": "16", "method.rounds": "4"})
    assert written("pt2", run, "last", tmp_path)[2] < 1e-5


def test_names_of_blocks_may_be_those_of_values_in_the_graph(tmp_path: Path) -> None:
    run = run_of("dcl")
    run.rule.net.names = ("relu", "conv2d \u2603 <x>", "linear")
    path, _, difference = written("onnx", run, "all", tmp_path)
    assert difference < 1e-6
    import onnx

    outputs = [output.name for output in onnx.load(path).graph.output]
    assert outputs == ["relu", "conv2d \u2603 <x>", "linear", "logits"]


def test_a_block_without_a_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--exit conv1: .*no prediction under method bp; those that do: classifier"):
        exported(run_of("bp"), 0)


# ---------------------------------------------------------------- what an export holds


def test_a_network_cut_down_holds_the_blocks_up_to_its_exit_alone() -> None:
    whole, last, first = (TrainedNetwork(*parts(run_of("cafo-ce")), exit) for exit in ("all", "last", 0))
    assert {*stored_tensors(whole)} == {*stored_tensors(last)}  # all blocks answer together
    names = set(stored_tensors(first))
    assert {name.split(".")[3] for name in names if name.startswith("rule.net")} == {"0"}
    assert {name.split(".")[2] for name in names if name.startswith("rule.objectives")} == {"0"}
    x = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(first(x), whole.exits(x)["conv1"])
    with pytest.raises(ValueError, match="cut down to block 'conv1'; export it with --exit all"):
        first.exits(x)


def test_a_network_keeps_no_objective_that_its_answer_does_not_read() -> None:
    last = TrainedNetwork(*parts(run_of("predsim")), "last")
    assert not [name for name in stored_tensors(last) if "objectives" in name]
    assert [name for name in stored_tensors(TrainedNetwork(*parts(run_of("predsim")))) if "objectives" in name]


def parts(run: StoredRun) -> tuple[localprop.Rule, DataFacts]:
    return run.rule, run.facts


def test_shared_parameters_are_stored_once() -> None:
    network = TrainedNetwork(*parts(run_of("dcl")))
    dictionaries = [name for name in stored_tensors(network.rule) if "dictionary" in name]
    assert dictionaries == ["objectives.0.dictionary.embeddings"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"in \[0, 1\], got torch.uint8; use images / 255"),
        (torch.zeros(1, 16, 16), r"shape \(N, 1, 16, 16\), got \(1, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16), r"shape \(N, 1, 16, 16\), got \(2, 3, 16, 16\)"),
        ([[0.0]], "need a batch of inputs as a tensor, got a list"),
    ],
)
def test_images_that_do_not_fit_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainedNetwork(*parts(run_of("pred")))(given)


@pytest.mark.parametrize(("text", "exit"), [("last", "last"), ("all", "all"), ("b", 1), ("0", 2), ("1", 1), ("2", 2)])
def test_exits_are_named_or_counted(text: str, exit: Exit) -> None:
    assert read_exit(text, ("a", "b", "0")) == exit


@pytest.mark.parametrize("text", ["3", "-1", "", "c", "1.0", "\u0663"])
def test_exits_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--exit {text}: no such block")):
        read_exit(text, ("a", "b", "0"))


def test_other_answers_are_told_from_rounding() -> None:
    logits = torch.tensor([[100.0, -3.0], [0.0, 1.0]])
    sample = Sample(torch.zeros(2, 1, 1, 1), {"logits": logits})
    answers = iter(logits + 0.005)
    assert largest_difference(sample, lambda x: {"logits": next(answers)[None]}) == pytest.approx(5e-5, rel=1e-2)
    for wrong in (logits + 0.02, logits * torch.nan):
        answers = iter(wrong)
        with pytest.raises(ValueError, match="output 'logits' differs from the run's own"):
            largest_difference(sample, lambda x: {"logits": next(answers)[None]})  # noqa: B023 # called at once


# ---------------------------------------------------------------- the folder and its card


def test_a_folder_is_loaded_without_the_run(tmp_path: Path) -> None:
    run = run_of("dcl")
    x = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        expected = run.rule.predict(run.rule.from_image(x))
    path, *_ = written("safetensors", run, "last", tmp_path)
    network = localprop.load(path)
    assert network.class_names == run.facts.class_names
    assert network.exit == "last"
    torch.testing.assert_close(network(x), expected)
    assert not network.training
    assert not network(x).requires_grad


def edited(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_folders_that_are_damaged_or_foreign_are_refused(tmp_path: Path) -> None:
    path, *_ = written("safetensors", run_of("dcl"), 0, tmp_path)
    config, weights = (path / "config.json").read_bytes(), (path / "model.safetensors").read_bytes()

    def refused(reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            localprop.load(path)
        assert "\n" not in str(caught.value)
        (path / "config.json").write_bytes(config)
        (path / "model.safetensors").write_bytes(weights)

    for content, reason in ((weights[:-4], "is damaged"), (b"", "is damaged"), (b"{}" * 9, "is damaged")):
        (path / "model.safetensors").write_bytes(content)
        refused(reason)
    (path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    refused("is not the file that config.json was written with")
    for content, reason in ((b"{", "is not JSON"), (b"[]", "not a network"), (b"\xff", "is not JSON")):
        (path / "config.json").write_bytes(content)
        refused(reason)
    for changes, reason in (
        ({"version": 9}, "has format version 9, this localprop reads 1; upgrade"),
        ({"exit": "conv2"}, "one of the two was changed"),
        ({"exit": "nowhere"}, "no such block"),
        ({"mean": "x"}, "does not fit"),
        ({"class_names": ["one"]}, "does not fit"),
        ({"settings": {"method": "posix:system"}}, "taken only with --allow-imports"),
        ({"settings": {"method": "dcl", "surprise": 1}}, "surprise"),
        ({"settings": 3}, "does not fit"),
    ):
        edited(path, **changes)
        refused(reason)
    (path / "config.json").unlink()
    refused("cannot be read")
    assert localprop.load(path).exit == 0


def final(**changes: Any) -> Final:
    content = {
        "method": "dcl",
        "model": "conv",
        "data": "mnist",
        "seed": 3,
        "epochs": 2,
        "test_error": 12.5,
        "layer_errors": (40.0, 20.0, 12.5),
        "parameters": 10,
        "extra_parameters": 2,
        "train_seconds": 60.4,
        "test_images": 8,
        "versions": {"torch": "2.9"},
        "hardware": {"cpu": "A | B"},
        "settings": {},
        "commit": None,
    }
    return Final(**{**content, **changes})


def card_of(run: StoredRun, exit: Exit, numbers: Final | None) -> tuple[dict[str, Any], str]:
    what, _ = exported(run, exit)
    method = CATALOGUE[run.config.method.name]
    text = model_card(what.facts, published_settings(run.config), method, numbers, what.network.block_names)
    _, front, body = text.split("---\n", 2)
    text.encode("utf-8")
    found: dict[str, Any] = yaml.safe_load(front)
    return found, body


def test_the_card_has_the_run_s_numbers() -> None:
    front, body = card_of(run_of("dcl"), "last", final())
    assert (front["library_name"], front["pipeline_tag"]) == ("localprop", "image-classification")
    assert front["tags"] == ["localprop", "local-learning", "dcl", "conv"]
    [result] = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.875
    assert "8 test images" in body
    assert "seed 3" in body
    assert "| block conv1 | 40 |" in body
    assert "| training seconds | 60 |" in body
    assert r"| cpu | A \| B |" in body
    assert card_of(run_of("dcl"), 0, final())[0]["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.6
    assert "local-learning" not in card_of(run_of("bp"), "last", final())[0]["tags"]


def test_the_card_of_an_unfinished_run_has_no_numbers() -> None:
    front, body = card_of(run_of("dcl"), "last", None)
    assert "model-index" not in front
    assert "had not finished" in body
    assert "error %" not in body


def test_the_hub_s_own_reader_takes_the_card(tmp_path: Path) -> None:
    from huggingface_hub import metadata_load

    path, *_ = written("safetensors", run_of("dcl"), "last", tmp_path)
    assert metadata_load(path / "README.md")["library_name"] == "localprop"


def test_what_comes_from_the_run_is_no_markup() -> None:
    _, body = card_of(run_of("dcl"), "last", final(hardware={"<img src=x>": "![a](http://x)\n\n# b"}))
    assert "<b>" not in body
    assert "<img" not in body
    assert "\n# b" not in body
    assert r"&lt;b&gt;ankle&lt;/b&gt; \| boot" in body
    assert r"a \# b \`c\`" in body
    assert r"\!\[a\]\(http://x\)" in body


def test_the_card_s_code_runs(tmp_path: Path) -> None:
    path, *_ = written("safetensors", run_of("dcl"), "last", tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    assert "snapshot_download" in code
    code = code.replace('snapshot_download("USER/NAME")', repr(str(path)))
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["names"]) == 8


def test_the_card_s_command_gives_the_run_s_settings() -> None:
    given = {
        "optimizer.betas": "0.8,0.9",
        "at": "conv1,conv2.2",
        "epochs": "3",
        "method.temperature": "2",
        "threads": "2",
    }
    config = config_from({"method": "dcl", **SMALL, **given})
    words = shlex.split(train_command(published_settings(config)))[2:-2]
    flags = {flag[2:]: text for flag, text in zip(words[::2], words[1::2], strict=True)}
    assert config_from(flags | {"threads": "2"}).to_dict() == config.to_dict()


def test_no_directory_of_the_machine_is_published() -> None:
    assert published_data("folder:/home/someone/cats") == "folder:cats"
    assert published_data("parquet:../x/") == "parquet:x"
    assert published_data("mnist") == "mnist"
    run = run_of("dcl", **SMALL, **{"data.root": "/home/someone", "threads": "3"})
    assert "someone" not in json.dumps(published_settings(run.config))
    assert "threads" not in published_settings(run.config)


def test_the_network_computes_in_float32_whatever_the_run_did() -> None:
    run = run_of("dcl", **SMALL, precision="bf16")
    x = torch.rand(2, 1, 16, 16)
    network = TrainedNetwork(*parts(run))
    found: Tensor = network(x)
    torch.testing.assert_close(found, TrainedNetwork(*parts(run_of("dcl")))(x), rtol=1e-6, atol=1e-6)
