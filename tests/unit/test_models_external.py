"""Networks of timm and torchvision by name: their inputs, and what is said where they cannot be had."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from localprop import models
from localprop.cli import main


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:resnet18", 224),
        ("timm:vit_tiny_patch16_384", 384),
        ("torchvision:efficientnet_b1", 240),
        ("torchvision:no_such_network", None),
        ("vgg8b", None),
    ],
)
def test_networks_declare_the_size_of_their_images(name: str, size: int | None):
    assert models.image_size(name) == size


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_network_reads_as_many_channels_as_the_images_have(name: str, channels: int):
    torch.manual_seed(0)
    model = models.get(name)((channels, 64, 64), 7).eval()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == channels
    assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 7)
    if name.startswith("timm:"):
        return  # timm draws the weights for these channels itself
    torch.manual_seed(0)
    usual = next(module for module in models.get(name)((3, 64, 64), 7).modules() if isinstance(module, nn.Conv2d))
    assert (first.stride, first.padding, first.bias is None) == (usual.stride, usual.padding, usual.bias is None)
    drawn = [layer.weight.detach().square().sum((1, 2, 3)).mean() for layer in (first, usual)]
    assert 0.5 < float(drawn[0] / drawn[1]) < 2.0  # the sum over channels keeps its variance


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_a_network_is_built_for_the_size_that_is_asked_for(name: str):
    with torch.device("meta"):
        model = models.get(name)((1, 32, 32), 7).eval()
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timm:vit_tiny_patch16_225", (3, 224, 224), r"timm has no model .* \(did you mean 'vit_tiny_patch16_224'"),
        ("torchvision:maskrcnn_resnet50_fpn", (3, 224, 224), "torchvision has no model 'maskrcnn_resnet50_fpn'"),
        ("torchvision:maxvit_t", (3, 100, 100), "cannot be built for images .* its own size is --image-size 224"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, shape: tuple[int, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        models.get(name)(shape, 7)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["train", "--model", "timm:resnet18", "--out", "nowhere"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("--model timm:resnet18: needs the package timm; pip install 'localprop[timm]'")


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("timm:test_resnet", "layer1.0 layer2.0 layer3.0 layer4.0 fc"),
        ("timm:test_vit", " ".join(f"blocks.{index}" for index in range(6)) + " head"),
    ],
)
def test_the_command_line_trains_every_repeated_block(model: str, names: str, tmp_path, capsys):
    argv = f"train --method dcl --model {model} --at blocks --data fashion-mini --epochs 1 --limit-batches 2"
    assert main([*argv.split(), "--batch-size", "8", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert len(final["layer_errors"]) == len(names.split())
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"{final['test_error']}" in capsys.readouterr().out


def test_a_name_that_the_network_has_not_is_told_by_its_flag(tmp_path, capsys):
    argv = f"train --model timm:test_vit --at bloks --limit-batches 1 --out {tmp_path / 'run'}"
    assert main(argv.split()) == 2
    err = capsys.readouterr().err
    assert "--at: no module 'bloks' in VisionTransformer (did you mean 'blocks'?)" in err
    assert len(err.splitlines()) == 1
