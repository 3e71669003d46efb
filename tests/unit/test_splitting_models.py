"""Networks of timm and torchvision, cut into blocks: one small network of every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.vgg import VGG
from torch import Tensor, nn
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    regnet,
    resnet,
    swin_transformer,
    vgg,
    vision_transformer,
)

import localprop
from localprop.types import LocalBatch

TOKENS = {"img_size": 32, "patch_size": 8, "embed_dim": 16}


def torchvision_vgg() -> nn.Module:
    with torch.device("meta"):  # its classifier has 120 million parameters, whatever its features
        model = vgg.VGG(nn.Sequential(), num_classes=10)
    model.features = vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 12), nn.ReLU(True), nn.Dropout(0.1), nn.Linear(12, 10))
    return model


def torchvision_efficientnet() -> nn.Module:
    stages = [
        efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1),
        efficientnet.MBConvConfig(4, 3, 2, 8, 16, 2),
        efficientnet.FusedMBConvConfig(2, 3, 2, 16, 16, 1),
    ]
    return efficientnet.EfficientNet(stages, dropout=0.1, num_classes=10, last_channel=24)


def named(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **settings)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "timm-resnet": (named("test_resnet"), ("layer1", "layer2", "layer3", "layer4", "fc")),
    "timm-resnext": (
        named("resnext50_32x4d", layers=[1, 1, 1, 1], cardinality=2, base_width=4),
        ("layer1", "layer2", "layer3", "layer4", "fc"),
    ),
    "timm-regnet": (named("regnety_002"), ("s1", "s2", "s3", "s4", "head")),
    "timm-densenet": (
        named("densenet121", growth_rate=4, block_config=(2, 2, 2)),
        ("features.denseblock1", "features.denseblock2", "features.denseblock3", "classifier"),
    ),
    "timm-vgg": (
        lambda: VGG([8, "M", 16, "M"], num_classes=10, mlp_ratio=0.01),
        ("features.2", "features.5", "head"),
    ),
    "timm-convnext": (
        lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 24), num_classes=10),
        ("stages.0", "stages.1", "stages.2", "stages.3", "head"),
    ),
    "timm-efficientnet": (
        named("test_efficientnet"),
        ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "classifier"),
    ),
    "timm-vit": (
        named("vit_tiny_patch16_224", depth=3, num_heads=2, **TOKENS),
        ("blocks.0", "blocks.1", "blocks.2", "head"),
    ),
    "timm-swin": (
        named(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            patch_size=2,
            window_size=4,
            embed_dim=8,
            depths=(2, 1),
            num_heads=(1, 2),
        ),
        ("layers.0", "layers.1", "head"),
    ),
    "timm-mixer": (lambda: MlpMixer(num_blocks=2, num_classes=10, **TOKENS), ("blocks.0", "blocks.1", "head")),
    "torchvision-resnet": (
        lambda: resnet.ResNet(resnet.BasicBlock, [1, 2, 1, 1], num_classes=10),
        ("layer1", "layer2", "layer3", "layer4", "fc"),
    ),
    "torchvision-resnext": (
        lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=2, width_per_group=4),
        ("layer1", "layer2", "layer3", "layer4", "fc"),
    ),
    "torchvision-regnet": (
        lambda: regnet.RegNet(
            regnet.BlockParams([1, 2], [8, 16], [4, 4], [1.0, 1.0], [2, 2], se_ratio=0.25), num_classes=10, stem_width=8
        ),
        ("trunk_output.block1", "trunk_output.block2", "fc"),
    ),
    "torchvision-densenet": (
        lambda: densenet.DenseNet(4, (2, 2, 2), 8, num_classes=10),
        ("features.denseblock1", "features.denseblock2", "features.denseblock3", "classifier"),
    ),
    "torchvision-vgg": (torchvision_vgg, ("features.3", "avgpool", "classifier.3")),
    "torchvision-convnext": (
        lambda: convnext.ConvNeXt(
            [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 1)], num_classes=10
        ),
        ("features.1", "features.3", "classifier"),
    ),
    "torchvision-efficientnet": (torchvision_efficientnet, ("features.1", "features.2", "features.3", "classifier")),
    "torchvision-vit": (
        lambda: vision_transformer.VisionTransformer(32, 8, 3, 2, 16, 24, num_classes=10),
        (*(f"encoder.layers.encoder_layer_{index}" for index in range(3)), "heads"),
    ),
    "torchvision-swin": (
        lambda: swin_transformer.SwinTransformer([2, 2], 8, [2, 1], [1, 2], [4, 4], num_classes=10),
        ("features.1", "features.3", "head"),
    ),
}
"""A small network of the family, and the blocks that it is cut into by default."""

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(6) % 3


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[str, ...]]:
    torch.manual_seed(0)
    build, names = FAMILIES[request.param]
    return build(), names


def test_a_family_is_cut_into_stages_of_its_own_modules(family: tuple[nn.Module, tuple[str, ...]]):
    model, names = family
    modes = {module: module.training for module in model.modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    net = localprop.split(model)
    assert net.names == names
    assert all(module.training == mode for module, mode in modes.items())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    used = [{*block.parameters()} for block in net.blocks]
    assert sum(map(len, used)) == len(set().union(*used))  # no parameter is in two blocks
    assert set().union(*used) == set(model.parameters())  # the very same ones, and none is lost
    for key in net.state_dict():
        assert key.split(".", 2)[2] in weights

    with torch.no_grad():
        assert torch.equal(net.eval()(IMAGES), model.eval()(IMAGES))
    specs = net.specs(IMAGES, 10)
    for spec in specs[:-1]:
        assert len(spec.shape) == 1 or (
            spec.shape[1] == spec.shape[2] if len(spec.shape) == 3 else len(spec.shape) == 2
        )
    assert specs[-1].shape == (10,)


def test_the_loss_of_a_block_reaches_its_own_parameters_alone(family: tuple[nn.Module, tuple[str, ...]]):
    net = localprop.split(family[0], at="blocks")
    rule = localprop.methods.build("dcl-ld", net, num_classes=10, example=IMAGES[:2]).train()
    own = [list(block.parameters()) for block in net.blocks]
    for index, block_input, h, _ in net.iter_blocks(IMAGES):
        loss = rule.objectives[index](h, LocalBatch(TARGET, block_input)).loss
        for other, parameters in enumerate(own):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            assert all((gradient is None) == (other != index) for gradient in gradients)
        del h, loss
    groups = rule.parameter_groups()
    for step in rule.steps(IMAGES, TARGET):
        wanted = set(groups[step.key])
        assert all((parameter.grad is not None) == (parameter in wanted) for parameter in rule.parameters())
        rule.clear_gradients()


def test_a_family_learns(family: tuple[nn.Module, tuple[str, ...]]):
    net = localprop.split(family[0])
    rule = localprop.methods.build("dcl", net, num_classes=10, example=IMAGES[:2]).train()
    optimizers = {key: torch.optim.Adam(group, lr=3e-3) for key, group in rule.parameter_groups().items()}
    losses = []
    for number in range(6):
        rule.begin(number)
        losses.append(0.0)
        for step in rule.steps(IMAGES, TARGET):
            losses[-1] += float(step.loss)
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
    assert min(losses[-2:]) < losses[0] - 0.1


@pytest.mark.parametrize("name", ["timm-swin", "torchvision-swin"])
def test_maps_with_their_channels_last_are_handed_on_with_their_channels_first(name: str):
    net = localprop.split(FAMILIES[name][0](), at="blocks")
    assert [spec.shape for spec in net.specs(IMAGES, 10)] == [(8, 16, 16), (8, 16, 16), (16, 8, 8), (10,)]
    assert [spec.channels for spec in net.specs(IMAGES, 10)] == [8, 8, 16, 10]


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_a_block_of_ones_own_that_puts_its_channels_last_is_described_so():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), Turned(), nn.Linear(4, 5))
    net = localprop.LocalNetwork([first, nn.Sequential(nn.Flatten(), nn.Linear(180, 10))])
    spec = net.specs(torch.zeros(1, 3, 8, 8), 10)[0]
    assert (spec.shape, spec.channel_axis, spec.channels) == ((6, 6, 5), -1, 5)
