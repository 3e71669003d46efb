"""The networks that are trained module by module: residual networks, the vision transformer and the mixer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop import models
from localprop.models.resnet import ResidualBlock
from localprop.models.tokens import PatchEmbedding
from localprop.models.vit import Positions
from localprop.train.config import resolve
from localprop.train.executor import LocalExecutor

NAMES = ("resnet32", "resnet110", "vit", "mixer")
CLASSES = 3
TINY = {
    "resnet32": (models.resnet32, {"width": 0.25, "modules": 4}),
    "vit": (models.vit, {"depth": 2, "hidden": 16, "heads": 2}),
    "vit-class": (models.vit, {"depth": 2, "hidden": 16, "heads": 2, "pooling": "class"}),
    "mixer": (models.mixer, {"depth": 2, "hidden": 16}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(name: str, shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> localprop.LocalNetwork:
    torch.manual_seed(seed)
    factory, settings = TINY[name]
    return factory(shape, CLASSES, **settings)


def batch(shape: tuple[int, int, int] = (3, 16, 16), size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prototypes = F.interpolate(torch.rand(CLASSES, shape[0], 4, 4, generator=generator), size=shape[1:])
    y = torch.arange(size) % CLASSES
    return (prototypes[y] + 0.05 * torch.randn(size, *shape, generator=generator)).clamp(0, 1), y


def resnet_parameters(channels: int, classes: int, per_stage: int) -> int:
    norm, total, before = 2, 0, channels
    total += 9 * channels * 16 + norm * 16
    before = 16
    for width in (16, 32, 64):
        for _ in range(per_stage):
            total += 9 * before * width + 9 * width * width + 2 * norm * width
            before = width
    return total + 64 * classes + classes


def vit_parameters(channels: int, tokens: int, depth: int, d: int, classes: int, class_token: bool) -> int:
    attention = 3 * (d * d + d) + (d * d + d)
    mlp = (d * 4 * d + 4 * d) + (4 * d * d + d)
    layer = attention + mlp + 2 * (2 * d)
    embedding = 16 * channels * d + d + tokens * d + (2 * d if class_token else 0)
    return embedding + depth * layer + 2 * d + d * classes + classes


def mixer_parameters(channels: int, tokens: int, depth: int, d: int, classes: int) -> int:
    over_tokens = (tokens * (d // 2) + d // 2) + (d // 2 * tokens + tokens)
    over_channels = (d * 4 * d + 4 * d) + (4 * d * d + d)
    return 16 * channels * d + d + depth * (over_tokens + over_channels + 4 * d) + 2 * d + d * classes + classes


@pytest.mark.parametrize(
    ("name", "shape", "settings", "expected"),
    [
        ("resnet32", (3, 32, 32), {}, resnet_parameters(3, 10, 5)),
        ("resnet32", (1, 28, 28), {"modules": 16}, resnet_parameters(1, 10, 5)),
        ("resnet110", (3, 32, 32), {}, resnet_parameters(3, 10, 18)),
        ("vit", (3, 32, 32), {}, vit_parameters(3, 64, 6, 512, 10, False)),
        ("vit", (1, 28, 28), {"pooling": "class"}, vit_parameters(1, 49, 6, 512, 10, True)),
        ("vit", (3, 32, 32), {"depth": 12, "hidden": 384, "heads": 6}, vit_parameters(3, 64, 12, 384, 10, False)),
        ("mixer", (3, 32, 32), {}, mixer_parameters(3, 64, 6, 512, 10)),
        ("mixer", (1, 28, 28), {"depth": 12, "width": 0.5}, mixer_parameters(1, 49, 12, 256, 10)),
    ],
)
def test_numbers_of_parameters(name: str, shape: tuple[int, int, int], settings: dict, expected: int):
    with torch.device("meta"):
        assert count(models.CATALOGUE[name](shape, 10, **settings)) == expected
    if settings == {} and shape[0] == 3:
        assert f"{expected:,} parameters on 3x32x32" in models.CATALOGUE[name].__doc__


@pytest.mark.parametrize(
    ("method", "name", "extra"),
    [
        ("contrast", "resnet32", 5 * (16 + 32 + 64) * 128 + 15 * 128),
        ("contrast", "resnet110", 18 * (16 + 32 + 64) * 128 + 54 * 128),
        ("contrast", "vit", 6 * (512 * 128 + 128)),
        ("contrast", "mixer", 6 * (512 * 128 + 128)),
        *(("dcl", name, 10 * 512) for name in NAMES),
        ("dcl-averaged", "resnet32", 10 * 512),
        ("dcl-s", "resnet32", 0),
        ("dcl-ld", "resnet32", 10 * 5 * (16 + 32 + 64)),
    ],
)
def test_methods_add_the_published_numbers_of_parameters(method: str, name: str, extra: int):
    """Published: 73.6K for the heads of ResNet-32, 394K for those of ViT and Mixer, 5.12K for the dictionary."""
    with torch.device("meta"):
        net = models.CATALOGUE[name]((3, 32, 32), 10)
        rule = localprop.methods.build(method, net, num_classes=10, example=torch.zeros(1, 3, 32, 32))
    assert count(rule) - count(net) == extra
    published = {("contrast", "resnet32"): 73_600, ("contrast", "vit"): 393_984, ("contrast", "mixer"): 393_984}
    assert extra == published.get((method, name), extra)


def test_the_published_width_of_the_dictionary_is_said_and_can_be_changed():
    for name in NAMES[:2]:
        resolved = resolve({"method": "dcl", "model": name})
        assert "method.dictionary_width 512" in resolved.notes[0]
        assert "dictionary_width of dcl as published for such networks" in resolved.notes[0]
        assert resolved.config.method.settings["dictionary_width"] == 512
    assert "dictionary_width" not in resolve({"method": "dcl", "model": "vgg8b"}).notes[0]
    other = resolve({"method": "dcl", "model": "resnet32", "method.dictionary_width": 64})
    assert other.config.method.settings["dictionary_width"] == 64
    assert "this run instead: method.dictionary_width 64" in other.notes[1]
    net = localprop.split(tiny("resnet32"), at=["module1", "module3"])
    rule = localprop.methods.build("dcl", net, num_classes=CLASSES, example=torch.zeros(1, 3, 16, 16))
    assert rule.objectives[0].dictionary.width == 512
    rule = localprop.methods.build("dcl", net, num_classes=CLASSES, example=batch()[0], dictionary_width=8)
    assert rule.objectives[0].dictionary.width == 8


@pytest.mark.parametrize(("name", "per_stage"), [("resnet32", 5), ("resnet110", 18)])
def test_residual_blocks_are_joined_into_modules_at_the_published_places(name: str, per_stage: int):
    """Published as (stage from 1, block from 0) after which the graph is cut."""
    published = {
        "resnet32": {
            2: [(2, 1)],
            4: [(1, 2), (2, 1), (3, 0)],
            8: [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)],
            16: [(0, 4), *((1, i) for i in range(5)), *((2, i) for i in range(5)), *((3, i) for i in range(4))],
        },
        "resnet110": {
            2: [(2, 8)],
            4: [(1, 11), (2, 7), (3, 3)],
            8: [(1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)],
        },
    }[name]
    with torch.device("meta"):
        for modules in (2, 4, 8, 16):
            net = models.CATALOGUE[name]((3, 32, 32), 10, modules=modules)
            assert net.names == tuple(f"module{i + 1}" for i in range(modules))
            sizes = [sum(isinstance(m, ResidualBlock) for m in block.modules()) for block in net.blocks]
            assert sum(sizes) == 3 * per_stage
            if modules in published:
                ends = [(stage - 1) * per_stage + block + 1 for stage, block in published[modules]]
                assert [sum(sizes[: i + 1]) for i in range(modules - 1)] == ends
    assert all(sizes[1:]) or modules == 16


@pytest.mark.parametrize("name", TINY)
def test_the_network_is_its_blocks_one_after_another(name: str):
    net, (x, _) = tiny(name), batch()
    for mode in (True, False):
        net.train(mode)
        h = x
        for block in net.blocks:
            h = block(h)
        assert torch.equal(net(x), h)
    with torch.no_grad():
        *_, last = net.iter_blocks(x)
        assert torch.equal(last.h, net(x))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_shapes_of_blocks(name: str, shape: tuple[int, int, int]):
    specs = tiny(name, shape).specs(torch.zeros(1, *shape), CLASSES)
    side = shape[1]
    if name == "resnet32":
        assert [spec.shape for spec in specs[:-1]] == [
            (4, side, side),
            (8, side // 2, side // 2),
            (16, side // 4, side // 4),
        ]
        return
    tokens = (side // 4) ** 2 + (name == "vit-class")
    assert [(spec.shape, spec.channel_axis, spec.channels) for spec in specs[:-1]] == [((tokens, 16), -1, 16)] * 2


def test_a_residual_block_adds_its_input():
    block = ResidualBlock(2, 5, stride=2).eval()
    nn.init.zeros_(block.residual[4].weight)
    x = torch.randn(2, 2, 5, 7)
    y = block(x)
    assert y.shape == (2, 5, 3, 4)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2].relu())
    assert not y[:, 2:].any()


def test_tokens_are_patches_row_by_row():
    embedding = PatchEmbedding(1, 3, 2)
    x = torch.randn(2, 1, 4, 6)
    weight, bias = embedding.projection.weight.flatten(1), embedding.projection.bias
    expected = [
        x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) @ weight.T + bias for i in (0, 1) for j in range(3)
    ]
    torch.testing.assert_close(embedding(x), torch.stack(expected, 1))


def test_the_classifier_reads_the_mean_or_the_class_token():
    net = tiny("vit-class").eval()
    h = torch.randn(2, 17, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.blocks[-1](h).sum(), h)
    assert gradient[:, 0].any()
    assert not gradient[:, 1:].any()
    mean = tiny("vit").eval().blocks[-1]
    torch.testing.assert_close(mean(h), mean(h.flip(1)))


@pytest.mark.parametrize("method", ["dcl", "contrast", "infopro-softmax", "infopro-contrast"])
@pytest.mark.parametrize("name", TINY)
def test_module_wise_training_lowers_every_loss(method: str, name: str):
    x, y = batch()
    rule = localprop.methods.build(method, tiny(name), num_classes=CLASSES, example=x)
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.01))
    history = [[float(step.loss) for step in executor.step(i, x, y)] for i in range(15)]
    for first, last in zip(history[0], history[-1], strict=True):
        # Samples are contrasted with three others of their class: log 3 is the least.
        assert last < 0.9 * first or (method == "contrast" and last < 1.3)


@pytest.mark.parametrize("method", ["dcl-s", "contrast", "infopro-contrast"])
@pytest.mark.parametrize("name", TINY)
def test_a_loss_trains_its_own_module_alone(method: str, name: str):
    x, y = batch()
    rule = localprop.methods.build(method, tiny(name), num_classes=CLASSES, example=x)
    groups = rule.parameter_groups()
    seen = 0
    for step in rule.steps(x, y):
        for key, group in groups.items():
            # Where an embedding's weights stand after their block was yielded, nothing may have been added.
            assert key == step.key or all(parameter.grad is None for parameter in group)
        assert all(parameter.grad is not None for parameter in groups[step.key])
        for parameter in groups[step.key]:
            parameter.grad = None
        seen += 1
    assert seen == len(rule.net)


def test_the_patch_embedding_belongs_to_the_first_module():
    for name in ("vit", "vit-class", "mixer"):
        net = tiny(name)
        for index, block in enumerate(net.blocks):
            parts = [isinstance(m, (PatchEmbedding, Positions)) for m in block.modules()]
            assert any(parts) == (index == 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.resnet32((3, 32, 32), 10, modules=5),
            r"modules: must be one of \[2, 4, 8, 16\], or None.*got 5",
        ),
        (lambda: models.resnet110((3, 32, 32), 10, dropout=1.0), r"dropout: must be in \[0, 1\)"),
        (
            lambda: models.vit((3, 32, 32), 10, patch=5),
            "patch: must divide the sides of images of 32 x 32 pixels, got 5",
        ),
        (lambda: models.mixer((3, 32, 30), 10), "patch: must divide the sides of images of 32 x 30 pixels, got 4"),
        (lambda: models.mixer((3, 32, 32), 10, patch=0), "patch: must divide"),
        (lambda: models.vit((3, 32, 32), 10, heads=7), "heads: must divide the width 512 of a token, got 7"),
        (lambda: models.vit((3, 32, 32), 10, heads=0), "heads: must be at least 1, got 0"),
        (lambda: models.vit((3, 32, 32), 10, depth=0), "depth: must be at least 1, got 0"),
        (lambda: models.mixer((3, 32, 32), 10, hidden=0), "hidden: must be at least 1, got 0"),
        (lambda: models.vit((3, 32, 32), 10, pooling="max"), "pooling: must be 'mean' or 'class', got 'max'"),
        (lambda: tiny("vit")(torch.zeros(1, 3, 4, 4)), "positions are learned for 16 tokens, got 1"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
