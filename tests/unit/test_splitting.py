"""Where a model of any form can be cut, and what is said where it cannot."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.densenet import DenseNet

import localprop
from localprop.splitting.balance import costs, share_out


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Tokens(nn.Module):
    """A small transformer in shape: a stem, a class token, blocks in a list, a head."""

    def __init__(self, blocks: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.register_buffer("places", torch.arange(20.0).view(1, 5, 4))
        self.trunk = blocks or nn.ModuleList(Residual(4, 4 + 4 * index) for index in range(6))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        torch._assert(x.shape[2] == 6, "six features")
        places = self.places.cos()
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.stem(x)], 1)
        for block in self.trunk:
            h = block(h + places)
        if mask is not None:
            h = h * mask
        return self.head(h[:, 0])


X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("at", ["trunk", "blocks", "layers", "stages", None])
def test_every_child_of_a_list_ends_a_block(at):
    model = Tokens()
    net = localprop.split(model, at=at)
    assert net.names == (*(f"trunk.{index}" for index in range(6)), "head")
    assert torch.equal(net(X), model(X))
    names = [key.split(".", 2)[2] for key, _ in net.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_what_does_not_depend_on_the_input_is_computed_by_each_block():
    model = Tokens()
    net = localprop.split(model, at=["trunk.1", "trunk.3"])
    assert net.names == ("trunk.1", "trunk.3", "head")
    model.places.mul_(2.0)  # the buffer is the model's own
    assert torch.equal(net(X), model(X))
    assert all(block.places is model.places for block in net.blocks)


def test_a_module_list_in_a_list_of_names_is_its_last_module():
    assert localprop.split(Tokens(), at=["trunk.2", "trunk"]).names[-2:] == ("trunk.5", "head")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (["trunk.2.first"], r"more than one tensor goes on from 'trunk.2.first': .* 'trunk.1' and 'trunk.2'"),
        (["trunk.9"], r"no module 'trunk.9' to cut after \(did you mean 'trunk.[0-5]'\?\) in Tokens"),
        ("tronk", r"no module 'tronk' in Tokens \(did you mean 'trunk'\?\); .* one of blocks, stages, layers"),
        ([3], "at: must be a list of names"),
        (3, "at: must be a list of names"),
        ([""], "no module ''"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(at, message):
    with pytest.raises(ValueError, match=message):
        localprop.split(Tokens(), at=at)


def test_a_cut_inside_a_dense_block_names_the_nearest_that_can_be_made():
    model = DenseNet(4, (3, 2), 8, num_classes=3)
    with pytest.raises(
        ValueError, match=r"the nearest places to cut at are 'features\.pool0' and 'features\.denseblock1'"
    ):
        localprop.split(model, at=["features.denseblock1.denselayer2"])
    assert localprop.split(model, at="blocks").names == ("features.denseblock1", "features.denseblock2", "classifier")


@pytest.mark.parametrize(("blocks", "sizes"), [(1, [6]), (2, [3, 3]), (3, [2, 2, 2]), (7, [1, 1, 1, 1, 1, 1, 0])])
def test_a_number_of_blocks_holds_equally_many_of_the_repeated_ones(blocks: int, sizes: list[int]):
    net = localprop.split(Tokens(), blocks=blocks)
    assert [sum(isinstance(module, Residual) for module in block.modules()) for block in net.blocks] == sizes
    assert net.names[-1] == "head"


def test_more_blocks_than_there_are_places_to_cut_at_are_refused():
    with pytest.raises(ValueError, match="Tokens can be cut into at most 7 blocks, got 8"):
        localprop.split(Tokens(), blocks=8)


@pytest.mark.parametrize("balance", ["parameters", "flops", "memory"])
def test_blocks_are_balanced(balance):
    model = Tokens()
    even = localprop.split(model, blocks=3)
    balanced = localprop.split(model, blocks=3, balance=balance, example=X)
    assert max(costs(balanced.blocks, balance, X)) < max(costs(even.blocks, balance, X))
    assert torch.equal(balanced(X), model(X))


def test_balancing_leaves_statistics_and_randomness_alone():
    model = resnet18(num_classes=3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    net = localprop.split(model, blocks=3, balance="memory", example=example)
    assert len(net) == 3
    assert net.names == ("maxpool", "layer1.1", "fc")  # the first maps are the largest
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_what_autograd_keeps_of_a_block():
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3))
    [first, _] = costs([model[:2], model[2:]], "memory", X[0])
    # The input of the linear layer and the output of the ReLU, in float32; no weights.
    assert first == 4 * (X[0].numel() + 4 * 50)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_largest_share_is_as_small_as_can_be(parts: int):
    draw = random.Random(parts)
    for _ in range(20):
        row = [draw.randrange(10) for _ in range(6)]

        def largest(cuts: tuple[int, ...], row: list[int] = row) -> int:
            return max(sum(row[a:b]) for a, b in itertools.pairwise((0, *cuts, len(row))))

        found = tuple(share_out(row, parts))
        assert len(found) == parts - 1
        assert largest(found) == min(map(largest, itertools.combinations(range(1, 6), parts - 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": ["stem"], "blocks": 2}, "blocks: goes in place of at, got both"),
        ({"blocks": 0}, "blocks: must be a whole number of at least 1, got 0"),
        ({"blocks": 2, "balance": "flop"}, r"balance: must be one of memory, flops, parameters \(did you mean 'flops'"),
        ({"balance": "flops"}, "balance: needs the number of blocks"),
        ({"blocks": 2, "balance": "memory"}, "balance: 'memory' is measured on a batch; pass example=x"),
        ({"example": torch.zeros(2, 4, 5)}, "example: the model cannot run on torch.float32 of shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        localprop.split(Tokens(), **settings)


class Plain(nn.Module):
    """Layers without blocks, one of them shared or not, with functions between them."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = self.second if tied else nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        h = F.max_pool2d(F.relu(self.second(h)), 2)
        h = F.relu(self.third(h))
        h = F.dropout(h.mean((2, 3)), 0.5, self.training)
        return F.log_softmax(self.fc(h), dim=1)


MAPS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_model_without_blocks_is_cut_before_every_layer():
    model = Plain()
    net = localprop.split(model)
    assert net.names == ("norm", "second", "third", "fc")
    assert torch.equal(net.eval()(MAPS), model.eval()(MAPS))
    assert [spec.shape for spec in net.specs(MAPS, 3)] == [(4, 8, 8), (4, 4, 4), (4,), (3,)]


def test_a_function_call_of_dropout_follows_the_mode():
    model = Plain()
    net = localprop.split(model)
    for mode in (True, False):
        net.train(mode), model.train(mode)
        outputs = []
        for module in (net, model):
            torch.manual_seed(1)
            outputs.append(module(MAPS))
        assert torch.equal(*outputs)
    net.train()
    assert not torch.equal(
        net.blocks[2](outputs[0].new_ones(2, 4, 4, 4)), net.blocks[2](outputs[0].new_ones(2, 4, 4, 4))
    )


def test_a_parameter_in_two_blocks_is_refused():
    with pytest.raises(
        ValueError, match=r"blocks .* share the parameter 'second\.weight'; cut so that all that use it"
    ):
        localprop.split(Plain(tied=True))


def test_a_block_that_would_overwrite_its_input_works_on_a_copy():
    net = localprop.split(Plain(), at=["norm", "second"])  # the second block begins with an in-place ReLU
    outputs = [done.output for done in net.eval().iter_blocks(MAPS)]
    assert (outputs[0] < 0).any()
    assert all(done.input.requires_grad for done in net.iter_blocks(MAPS, input_grad=True))


def test_pieces_without_parameters_end_the_block_before_them():
    model = resnet18(num_classes=3)
    assert localprop.split(model, at=["bn1", "relu", "maxpool", "layer1"]).names == ("maxpool", "layer1", "fc")
    assert localprop.split(model, at=["layer4", "avgpool"]).names == ("avgpool", "fc")
    assert localprop.split(model, at=["maxpool", "fc"]).names == ("maxpool", "fc")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Residual(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h) if h.sum() > 0 else self.second(-h)


class Wavering(Branching):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h if self.training else 2 * h)


class Pair(Branching):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        return self.second(h), h


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, "the forward pass of Branching cannot be recorded .*control flow.*; write the blocks yourself"),
        (Wavering, "it does something else in training than in evaluation, at 'second'"),
    ],
)
def test_a_forward_pass_that_cannot_be_recorded_is_cut_while_it_runs(model, message):
    model = model()
    with pytest.warns(UserWarning, match=message):
        net = localprop.split(model, at=["first"])
    for mode in (True, False):
        for x in (X, -X):
            assert torch.equal(net.train(mode)(x), model.train(mode)(x))
    with pytest.raises(ValueError, match=message):
        localprop.split(model, blocks=2, balance="parameters")


def test_a_model_that_returns_several_tensors_is_refused():
    with pytest.raises(ValueError, match="must return one tensor, the logits, got a tuple from Pair"):
        localprop.split(Pair(), at=["first"])


def test_what_lies_inside_of_a_block_runs_as_it_is():
    model = nn.Sequential(nn.Linear(6, 6), Tokens(nn.ModuleList([Wavering(), Branching()])))
    model[1].trunk[0].second, model[1].trunk[1].second = nn.Linear(6, 4), nn.Linear(6, 4)
    model[1].trunk[0].first, model[1].trunk[1].first = nn.Linear(4, 6), nn.Linear(4, 6)
    net = localprop.split(model[1], at="trunk")
    assert torch.equal(net.train()(X), model[1].train()(X))
    assert torch.equal(net.eval()(X), model[1].eval()(X))
    with pytest.raises(ValueError, match=r"inside of 'trunk.1' cannot be recorded .*; name modules .* pass example=x"):
        localprop.split(model[1], at=["trunk.1.first"])
    with pytest.warns(UserWarning, match="cut while it runs"):
        assert localprop.split(model[1], at=["trunk.1.first"], example=X).names[0] == "trunk.1.first"


def shifted(x: Tensor) -> Tensor:
    return x + 1 if x.shape[1] > 3 else x


class Helped(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(shifted(self.first(shifted(x))))


def test_a_function_that_branches_is_called_as_a_whole():
    model = Helped()
    net = localprop.split(model, at=["first"])
    for x in (torch.randn(2, 6), torch.randn(2, 3, 6), torch.randn(2, 5, 6)):
        assert torch.equal(net(x), model(x))


def test_words_and_numbers_go_with_lists_of_modules_too():
    net = localprop.models.cnn((1, 8, 8), 3, width=0.05)
    assert localprop.split(net, at="blocks") is net
    assert localprop.split(net, blocks=2).names[-1] == "classifier"
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), nn.Linear(5, 3))
    halves = localprop.split(model, blocks=2)
    assert len(halves) == 2
    assert isinstance(halves.blocks[0], nn.Sequential)
    x = torch.randn(2, 6)
    assert torch.equal(halves(x), model(x))
    assert localprop.split(model, at="blocks").names == ("1", "2.1", "3")
    composed = nn.Sequential(nn.Linear(6, 6), Tokens())
    inside = localprop.split(composed, at=["0", "1.trunk.2"])
    assert inside.names == ("0", "1.trunk.2", "1.head")
    assert torch.equal(inside(X), composed(X))
