"""Weights to start from: what fits a network, what is refused, and that nothing is executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

import localprop
from localprop.models.external import factory
from localprop.train.assemble import DataFacts, build_model, build_rule
from localprop.train.config import RunConfig, config_from
from localprop.train.weights import Fitted, check_start, fit_weights, read_weights, starting_weights

GRAY = DataFacts(tuple("abcdefghij"), (1, 28, 28), (0.3,), (0.3,))
COLOUR = DataFacts(tuple("abcdefghij"), (3, 32, 32), (0.3,) * 3, (0.3,) * 3)


def config(weights: object, model: str = "vgg8b", **flags: object) -> RunConfig:
    small = {"model.width": 0.03} if model == "vgg8b" else {}
    return config_from({"model": model, "weights": str(weights), **small, **flags})


def start(settings: RunConfig, facts: DataFacts = COLOUR) -> Fitted | None:
    return starting_weights(settings, facts, build_model(settings, facts))


def network(classes: int = 3, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes)
    )


def test_weights_of_the_same_network_are_taken_whole():
    torch.manual_seed(0)
    given, own = network(), network()
    fitted = fit_weights(own, given.state_dict(), num_classes=3)
    assert not fitted.drawn
    assert not fitted.unused
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in fitted.state.items())
    assert str(fitted) == "9 of 9 tensors"


def test_a_classifier_for_other_classes_stays_as_it_was_drawn_and_is_named():
    given, own = network(classes=5), network(classes=3)
    fitted = fit_weights(own, {**given.state_dict(), "head.bias": torch.zeros(2)}, num_classes=3)
    assert fitted.drawn == ("4.weight", "4.bias")
    assert torch.equal(fitted.state["4.weight"], own.state_dict()["4.weight"])
    assert torch.equal(fitted.state["0.weight"], given[0].weight)
    assert str(fitted) == "7 of 9 tensors; drawn anew, for other classes: 4.weight, 4.bias; not used: head.bias"


@pytest.mark.parametrize(("of", "channels"), [(3, 1), (1, 3)])
def test_a_gray_image_is_a_colour_image_of_three_equal_channels(of: int, channels: int):
    torch.manual_seed(0)
    given, own = network(channels=of).double().eval(), network(channels=channels).double().eval()
    own.load_state_dict(fit_weights(own, given.state_dict(), num_classes=3).state)
    image = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        own(image.expand(-1, channels, -1, -1)), given(image.expand(-1, of, -1, -1)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("0.bias"), "0.bias is missing"),
        (lambda state: state.update({"0.weight": torch.zeros(4, 3, 5, 5)}), r"0.weight has shape \(4, 3, 5, 5\)"),
        (lambda state: state.update({"4.weight": torch.zeros(5, 7)}), r"4.weight has shape \(5, 7\)"),
        (lambda state: state.update({"4.bias": torch.zeros(())}), r"4.bias has shape \(\)"),
        (lambda state: [state.pop("1.weight"), state.update({"norm.weight": torch.zeros(4)})], "hold norm.weight"),
    ],
)
def test_weights_of_another_network_are_refused(change, told):
    state = dict(network().state_dict())
    change(state)
    with pytest.raises(ValueError, match=told):
        fit_weights(network(), state, num_classes=3)


def test_files_of_all_kinds_give_the_same_weights(tmp_path: Path):
    state = build_model(config("none"), COLOUR).state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "training.pt")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "parallel.pth")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    for name in ("plain.pt", "training.pt", "parallel.pth", "weights.safetensors"):
        read = read_weights(config(tmp_path / name), COLOUR)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], value) for key, value in state.items())


class Harmful:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "weights.safetensors"])
@pytest.mark.parametrize("write", [pickle.dump, lambda value, file: torch.save({"a": value}, file)])
def test_nothing_is_executed_that_comes_from_a_file(name: str, write, tmp_path: Path):
    with (tmp_path / name).open("wb") as file:
        write(Harmful(tmp_path / "witness"), file)
    with pytest.raises(ValueError, match=r"--weights .*(without executing code|cannot be read as safetensors)"):
        start(config(tmp_path / name))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no file of torch.save"),
        (b"PK\x03\x04 and so on", "no file of torch.save"),
        ({"lr": 0.1}, "no tensors by name"),
        ([torch.zeros(1)], "no tensors by name"),
        ({"format": "localprop-checkpoint"}, "name the run directory"),
    ],
)
def test_files_that_hold_no_weights_are_refused(content: object, told: str, tmp_path: Path):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=told):
        start(config(path))


def test_places_without_weights_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such run or file"):
        start(config(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"not a run of localprop, it has no config\.yaml"):
        start(config(tmp_path))
    with pytest.raises(ValueError, match="no pretrained weights of vgg8b"):
        start(config("pretrained"))
    torch.save(build_model(config("none"), COLOUR).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="last-block trains a network of its own"):
        check_start(config(tmp_path / "weights.pt", method="last-block"), COLOUR)


def test_pretrained_weights_of_torchvision_are_those_that_it_downloads(monkeypatch, tmp_path: Path):
    torch.manual_seed(0)
    whole = resnet18()
    stored = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    stored.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), stored)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = config("pretrained", "torchvision:resnet18")
    fitted = start(settings, GRAY)
    assert fitted is not None
    assert fitted.drawn == ("fc.weight", "fc.bias")
    model = build_model(settings, GRAY)
    model.load_state_dict(fitted.state)
    rule = build_rule(settings, GRAY, torch.device("cpu"), model).eval()
    x = torch.rand(2, 1, 64, 64)
    model.fc, whole.fc = nn.Identity(), nn.Identity()
    torch.testing.assert_close(model.eval()(x), whole.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    assert set(model.layer3.parameters()) <= set(rule.net.parameters())


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ValueError, match="cannot get pretrained weights of torchvision:resnet18"):
        start(config("pretrained", "torchvision:resnet18"))
    with pytest.raises(ValueError, match="has no model 'resnet19'"):
        config("pretrained", "torchvision:resnet19")


def test_timm_fits_its_pretrained_weights_itself(monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", num_classes=1000)
    asked = []

    def create(name: str, *, pretrained: bool, **settings: object) -> nn.Module:
        asked.append(pretrained)
        overlay = {"state_dict": whole.state_dict()} if pretrained else None  # in the place of a download
        return real(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **settings)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    model = factory("timm:test_vit", pretrained=True)((1, 64, 64), 10)
    assert asked == [True]
    fitted = start(config("pretrained", "timm:test_vit"), DataFacts(GRAY.class_names, (1, 64, 64), (0,), (1,)))
    assert fitted is not None
    given = whole.blocks[0].attn.qkv.weight
    assert torch.equal(fitted.state["blocks.0.attn.qkv.weight"], given)
    assert torch.equal(model.blocks[0].attn.qkv.weight, given)
    assert fitted.state["pos_embed"].shape == model.pos_embed.shape != whole.pos_embed.shape


def test_freeze_names_blocks_by_name_or_number():
    net = localprop.LocalNetwork([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)], ["first", "7", "last"])
    net.freeze(["first", "1"])
    assert net.frozen == {0, 1}
    with pytest.raises(ValueError, match=r"no block 'lust' \(did you mean 'last'\?\); there are first, 7, last"):
        net.freeze(["lust"])
    with pytest.raises(ValueError, match="no block '-1'"):
        net.freeze(["-1"])
    with pytest.raises(ValueError, match="all blocks are frozen"):
        net.freeze([2])
