"""Where channels stand: sequences (C, L), tokens (K, C) and maps with their channels last, for every objective."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.objectives.base import Objective
from localprop.rules.predictors import Synthesiser
from localprop.train.executor import LocalExecutor
from tests.traits import traits

METHODS = list(localprop.methods.CATALOGUE)
CLASSES, SIZE = 4, 12
NEEDS_IMAGES = {"dgl-image", "dgl-shift", "dgl-rotation", "simclr-local", "infomax", "cpc"}
NEEDS_POSITIONS = {"clusters"}


class Last(nn.Module):
    """A block on maps with their channels last."""

    channel_axis = -1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs), nn.ReLU())


def flat_end() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(8, 6, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())


NETWORKS = {
    "sequences": ((3, 10), lambda: [stage(3, 8), flat_end(), nn.Linear(30, CLASSES)]),
    "tokens": (
        (7, 5),
        lambda: [
            nn.Sequential(nn.Linear(5, 8), nn.Tanh()),
            nn.Sequential(nn.Linear(8, 6), nn.GELU()),
            nn.Sequential(nn.Flatten(), nn.Linear(42, CLASSES)),
        ],
    ),
    "features": (
        (9,),
        lambda: [nn.Sequential(nn.Linear(9, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), nn.Linear(6, 4)],
    ),
    "last": (
        (4, 6, 3),
        lambda: [Last(3, 8), Last(8, 6), nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES))],
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(method: str, name: str) -> tuple[localprop.Rule, Tensor, Tensor]:
    torch.manual_seed(0)
    shape, blocks = NETWORKS[name]
    x, y = torch.rand(SIZE, *shape), torch.arange(SIZE) % CLASSES
    net = localprop.LocalNetwork(blocks())
    return localprop.methods.build(method, net, num_classes=CLASSES, example=x[:2]), x, y


def refused(method: str, name: str) -> str | None:
    if traits(method).model:
        return "codes no patches"
    if name != "last" and method in NEEDS_IMAGES:
        return "images"
    if name == "last" and method in NEEDS_IMAGES & {"dgl-rotation", "infomax", "cpc"}:
        return "only square images|patches"
    if name == "features" and method in NEEDS_POSITIONS:
        return "map or tokens"
    return None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_what_is_no_image_or_say_why_not(method: str, name: str):
    if why := refused(method, name):
        with pytest.raises(ValueError, match=why):
            build(method, name)
        return
    rule, x, y = build(method, name)
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=1e-3))
    steps = executor.step(0, x, y)
    assert all(step.loss is None or torch.isfinite(step.loss) for step in steps)
    assert rule.eval().predict(x).shape == (SIZE, CLASSES)


def described(spec: localprop.BlockSpec) -> localprop.BlockSpec:
    """Describe the block that gives the same, laid out as objectives read it."""
    activation = spec.at_activation()
    return replace(
        spec,
        shape=spec.standard_shape,
        channel_axis=-1 if len(spec.shape) == 2 else 0,
        activation_shape=activation.standard_shape,
        activation_channel_axis=-1 if len(activation.shape) == 2 else 0,
    )


OWN_SHAPE = {"man", "auglocal", "mono-forward", "drtp"}
"""Methods whose objective has a copy of a block that reads the output, or one weight for each of its entries."""


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for name in ("sequences", "last")
        for method in METHODS
        if traits(method).block_by_block and method not in OWN_SHAPE and not refused(method, name)
    ],
)
def test_objectives_read_the_same_wherever_the_channels_stand(method: str, name: str):
    rule, x, y = build(method, name)
    objective = rule.objectives[0]
    assert isinstance(objective, Objective)
    twin = copy.deepcopy(objective)
    for part in twin.modules():
        if isinstance(part, Objective):
            part.spec = described(part.spec)
    h = torch.rand(SIZE, *objective.spec.shape)
    turned = h.transpose(1, 2) if h.dim() == 3 else h.movedim(-1, 1)
    batch = localprop.LocalBatch(y, x, x if objective.needs_image else None)
    torch.testing.assert_close(objective(h, batch).loss, twin(turned, batch).loss)


@pytest.mark.parametrize(
    ("block", "shape", "axis"),
    [
        (nn.Conv1d(3, 8, 3, padding=1), (8, 10), 0),
        (stage(3, 8), (8, 10), 0),
        (
            nn.Sequential(stage(3, 4), nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.GroupNorm(2, 8)), nn.Dropout()),
            (8, 10),
            0,
        ),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten()), (64,), 0),
        (nn.Linear(8, 4), (10, 4), -1),
        (nn.Sequential(nn.Linear(8, 4), nn.Conv1d(5, 6, 1)), (6, 4), 0),
        (nn.Sequential(nn.Conv1d(5, 6, 1), nn.Linear(8, 4)), (6, 4), -1),
        (nn.TransformerEncoderLayer(4, 2, batch_first=True), (10, 4), -1),
        (nn.Conv2d(3, 8, 3), (8, 5, 5), 0),
        (Last(3, 8), (5, 5, 8), -1),
        (Last(3, 8), (8,), 0),
        # Turned after the convolution: its channels do not stand first any more.
        (nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Identity()), (10, 8), -1),
    ],
)
def test_the_axis_of_the_channels(block: nn.Module, shape: tuple[int, ...], axis: int):
    from localprop.layout import channel_axis

    assert channel_axis(block, shape, "block") == axis


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return h * self.gate(h.mean(2))[:, :, None].sigmoid()


def test_a_block_says_where_its_channels_stand_if_that_cannot_be_read_off():
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    net, x = localprop.LocalNetwork([Mixed(), head]), torch.rand(2, 3, 10)
    with pytest.raises(ValueError, match=r"channel_axis: block '0' .*\(8, 10\).*block.channel_axis = 0 for \(C, L\)"):
        net.specs(x, CLASSES)
    net.blocks[0].channel_axis = 0
    assert net.specs(x, CLASSES)[0].channels == 8
    net.blocks[0].channel_axis = 2
    with pytest.raises(ValueError, match="on the first axis of a sample, 0, or on the last, -1, got 2"):
        net.specs(x, CLASSES)


def test_what_a_block_says_of_its_channels_holds_for_its_activation():
    block = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Dropout(0.5))
    block.channel_axis = -1
    head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 6 * 4, CLASSES))
    spec = localprop.LocalNetwork([block, head]).specs(torch.rand(1, 6, 4, 3), CLASSES)[0]
    assert spec.standard_shape == spec.at_activation().standard_shape == (5, 6, 4)


def test_what_a_block_says_of_its_channels_outlives_a_cut():
    model = nn.Sequential(nn.Linear(3, 4), Last(4, 5), nn.Dropout(), nn.Flatten(), nn.Linear(5 * 6 * 6, CLASSES))
    specs = localprop.split(model, at=["2"]).specs(torch.rand(1, 6, 6, 3), CLASSES)
    assert (specs[0].channel_axis, specs[0].channels, specs[0].standard_shape) == (-1, 5, (5, 6, 6))


def test_a_predicted_gradient_has_the_layout_of_the_output():
    rule, _, y = build("cdni", "sequences")
    synthesiser = rule.synthesisers["0"]
    assert isinstance(synthesiser, Synthesiser)
    for parameter in synthesiser.parameters():
        nn.init.normal_(parameter)
    h = torch.rand(SIZE, 8, 10)
    gradient = synthesiser(h, y)
    assert gradient.shape == h.shape
    shuffled = torch.randperm(10)
    torch.testing.assert_close(synthesiser(h[:, :, shuffled], y), gradient[:, :, shuffled])
