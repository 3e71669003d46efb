"""Models that are cut while they run, beside recorded ones and beside detaching by hand."""

import copy
import threading
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

import localprop
from localprop.cli import main
from localprop.splitting import hooked

Record = namedtuple("Record", ["logits", "features"])


class Skips(nn.Module):
    """Reads values, hands tuples on, and adds a first block's output far behind the cuts after it."""

    def __init__(self, *, returns: str = "tensor", in_place: bool = False) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.first = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.second = Pair(6)
        self.third = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.register_buffer("table", torch.ones(6), persistent=False)
        self.register_buffer("stored", torch.zeros(6))
        self.returns, self.in_place = returns, in_place

    def forward(self, x: Tensor) -> object:
        if float(x.sum()) == 1e30:  # depends on values: cannot be recorded
            x = -x
        early = self.first(x)
        h, beside = self.second(early + self.shift)
        h = self.third(h + beside) + self.stored
        if self.in_place:
            early.mul_(2.0)
            early += self.table
            h = h + early
        else:
            h = h + (early * 2.0 + self.table)
        logits = self.head(h)
        return {"tensor": logits, "tuple": (logits, h), "record": Record(logits, h), "dict": {"x": logits}}[
            self.returns
        ]


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.layer(x))
        return h, self.other(h)


def cut(model: nn.Module, at=("first", "second", "third"), **settings) -> localprop.LocalNetwork:
    with pytest.warns(UserWarning, match="cut while it runs"):
        return localprop.split(model, at=list(at), example=torch.zeros(2, 4, dtype=model.shift.dtype), **settings)


def by_hand(model: Skips, x: Tensor) -> list[Tensor]:
    """Outputs of the four blocks, each with a graph of its own."""
    first = model.first(x)
    second, _ = model.second(first.detach() + model.shift)
    beside = model.second.other(second.detach()).detach()
    third = model.third(second.detach() + beside)
    last = model.head(third.detach() + (first.detach() * 2.0 + model.table))
    return [first, second, third, last]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_each_block_learns_as_with_detaching_by_hand(in_place: bool):
    torch.manual_seed(0)
    model = Skips(in_place=in_place).double()
    other = copy.deepcopy(model)
    net = cut(model)
    assert net.names == ("first", "second", "third", "head")
    x = torch.randn(5, 4, dtype=torch.float64)
    for done, expected in zip(net.iter_blocks(x), by_hand(other, x), strict=True):
        torch.testing.assert_close(done.h, expected, rtol=0, atol=0)
        for h in (done.h, expected):
            h.square().sum().backward()
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, rtol=1e-12, atol=0, msg=name)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_a_network_cut_while_it_runs_computes_the_model_and_falls():
    torch.manual_seed(0)
    model = Skips()
    net = cut(model)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    assert torch.equal(net.eval()(x), copy.deepcopy(model).eval()(x))
    rule = localprop.methods.build("dcl", net.train(), num_classes=3, example=x)
    optimizers = {key: torch.optim.Adam(group, lr=0.01) for key, group in rule.parameter_groups().items()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = []
    for number in range(60):
        rule.begin(number)
        step_losses = []
        for step in rule.steps(x, y):
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
            step_losses.append(float(step.loss))
        losses.append(step_losses)
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {"second.other.weight", "second.other.bias"}  # what the cut goes past
    assert tuple(rule.predict(x).shape) == (64, 3)
    assert [tuple(exit.shape) for exit in rule.exits(x)] == [(64, 3)] * 4


def test_parameters_that_no_block_trains_are_named():
    with (
        pytest.warns(UserWarning, match="cut while it runs"),
        pytest.warns(UserWarning, match=r"2 parameters, which are not trained: second.other.weight"),
    ):
        localprop.split(Skips(), at=["first", "second", "third"], example=torch.zeros(2, 4))


def test_it_equals_a_recorded_network_bit_by_bit():
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    at = ["layer1", "layer2.0", "layer3", "layer4"]
    found = []
    for make in (localprop.split, lambda model, at: hooked.network(model, at, x)):
        torch.manual_seed(0)
        model = torchvision_models.resnet18(num_classes=4)
        model.layer2.add_module("dropout", nn.Dropout(0.2))
        net = make(model, at)
        torch.manual_seed(1)
        rule = localprop.methods.build("dcl", net, num_classes=4, example=x).train()
        optimizers = {key: torch.optim.SGD(group, lr=0.05) for key, group in rule.parameter_groups().items()}
        losses = []
        for number in range(2):
            rule.begin(number)
            for step in rule.steps(x, y):
                optimizers[step.key].step()
                optimizers[step.key].zero_grad(set_to_none=True)
                losses.append(step.loss)
        found.append((losses, {name: value.clone() for name, value in model.state_dict().items()}, net.names))
    (losses, state, names), (other_losses, other_state, other_names) = found
    assert names == other_names
    assert all(torch.equal(one, two) for one, two in zip(losses, other_losses, strict=True))
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_backprop_trains_the_model_as_a_whole():
    torch.manual_seed(0)
    model = Skips()
    other = copy.deepcopy(model)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    net = cut(model)
    rule = localprop.methods.build("bp", net, num_classes=3, example=x)
    rule.begin(0)
    list(rule.steps(x, y))
    nn.functional.cross_entropy(other(x), y).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, dict(other.named_parameters())[_plain(name)].grad)


def _plain(name: str) -> str:
    return name.split(".", 2)[2].replace("/", ".")


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_an_abandoned_pass_leaves_nothing_behind():
    model = Skips()
    net = cut(model)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    rule = localprop.methods.build("dcl", net, num_classes=3, example=x)
    before, threads = torch.get_rng_state(), threading.active_count()
    rule.begin(0)
    steps = rule.steps(x, y)
    next(steps)
    steps.close()
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_an_error_in_the_model_is_told_and_leaves_nothing_behind():
    model = Skips()
    net = cut(model)
    model.third[0] = nn.Linear(5, 6)
    threads = threading.active_count()
    passes = net.iter_blocks(torch.randn(6, 4))
    next(passes).h.sum().backward()
    next(passes)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(passes)
    assert threading.active_count() == threads
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_modes_copies_and_precisions_reach_all_of_the_model():
    model = Skips()
    net = cut(model)
    assert not net.eval()._model[0].training
    assert net.train()._model[0].training
    net.specs(torch.zeros(2, 4), 3)
    assert model.training
    twin = copy.deepcopy(net).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert twin.eval()(x).dtype == torch.float64
    assert twin._model[0].table.dtype == twin._model[0].stored.dtype == torch.float64
    twin._model[0].stored.fill_(3.0)
    net.load_state_dict({name: value.float() for name, value in twin.state_dict().items()})
    assert torch.equal(model.stored, torch.full((6,), 3.0))
    assert set(net.parameters()) <= set(model.parameters())


@pytest.mark.parametrize("returns", ["tuple", "record"])
@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_a_model_may_return_more_than_logits(returns: str):
    net = cut(Skips(returns=returns)).eval()
    x = torch.randn(3, 4)
    *_, last = net.iter_blocks(x)
    assert torch.equal(last.output, net(x))
    assert last.output.shape == (3, 3)


@pytest.mark.filterwarnings("ignore:no block's output depends")
def test_what_cannot_be_done_is_refused_with_a_way_out():
    net = cut(Skips())
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(ValueError, match="block 'first' cannot run by itself"):
        list(net.iter_blocks(x, blocks=range(2)))
    with pytest.raises(ValueError, match="cannot run by itself"):
        net.run_window(x, range(1, 3))
    with pytest.raises(ValueError, match="no single input whose gradient"):
        list(net.iter_blocks(x, input_grad=True))
    for method in ("dni", "overlap", "dfa"):
        rule = localprop.methods.build(method, net, num_classes=3, example=x)
        rule.begin(0)
        with pytest.raises(ValueError, match=r"by itself|no single input"):
            list(rule.steps(x, y))


@pytest.mark.parametrize(
    ("model", "at", "message"),
    [
        (Skips(), ["frist"], "no module 'frist'"),
        (Skips(returns="dict"), ["first"], "must return logits"),
        (Skips(), [], "cannot be recorded"),
    ],
)
def test_models_that_cannot_be_cut_while_they_run_are_refused(model: nn.Module, at: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        localprop.split(model, at=at, example=torch.zeros(2, 4))


class Twice(Skips):
    """Calls one module two times."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) == 1e30:
            x = -x
        return self.head(self.third(self.third(self.first(x))))


class Shared(Skips):
    """Uses one layer on both sides of a cut."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) == 1e30:
            x = -x
        return self.head(self.third(self.second.layer(torch.tanh(self.second.layer(self.first(x))))))


@pytest.mark.parametrize(
    ("model", "at", "message"),
    [
        (Twice(), ["third"], "called more than once"),
        (Twice(), ["second"], "not called by Twice"),
        (Shared(), ["second.layer"], "called more than once"),
        (Shared(), ["first", "third"], None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_that_are_called_in_several_places(model: nn.Module, at: list[str], message: str | None):
    if message is None:
        assert localprop.split(model, at=at, example=torch.zeros(2, 4)).names == ("first", "third", "head")
        return
    with pytest.raises(ValueError, match=message):
        localprop.split(model, at=at, example=torch.zeros(2, 4))


def test_a_module_called_stages_is_meant_by_that_word():
    model = Skips()
    model.stages = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    assert hooked.ends_of(model, "stages", None) == ["stages.0", "stages.1"]
    assert hooked.ends_of(model, "first", None) == ["first.0", "first.1"]


class Choosing(Skips):
    """Leaves a module out, by values."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(self.third(h) if float(x.sum()) >= 0 else h)


@pytest.mark.filterwarnings("ignore")
def test_a_pass_that_leaves_a_cut_out_is_refused():
    net = localprop.split(Choosing(), at=["first", "third"], example=torch.zeros(2, 4))
    x, y = torch.ones(4, 4) * torch.arange(1.0, 5.0)[:, None], torch.tensor([0, 1, 2, 0])
    rule = localprop.methods.build("pred", net, num_classes=3, example=x)
    rule.begin(0)
    assert len(list(rule.steps(x, y))) == 3
    rule.clear_gradients()
    with pytest.raises(ValueError, match="block 'third' ended with the answer, not with 'third'"):
        list(rule.steps(-x, y))
    assert all(parameter.grad is None for parameter in rule.parameters())


def test_an_example_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"example: the model cannot run on torch.float32 of shape \(2, 5\)"):
        localprop.split(Skips(), at=["first"], example=torch.zeros(2, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "at", "side"),
    [
        (torchvision_models.googlenet, ["conv3", "inception3b", "inception4c", "inception4e"], 64),
        (torchvision_models.inception_v3, ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e"], 80),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_with_auxiliary_classifiers_train(make, at: list[str], side: int):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, side, side), torch.arange(8) % 4
    net = localprop.split(make(num_classes=4, init_weights=False, aux_logits=False), at=at, example=x)
    rule = localprop.methods.build("dcl", net, num_classes=4, example=x).train()
    optimizers = {key: torch.optim.AdamW(group, lr=1e-3) for key, group in rule.parameter_groups().items()}
    losses = []
    for number in range(6):
        rule.begin(number)
        for step in rule.steps(x, y):
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
            losses.append(float(step.loss))
    blocks = len(net)
    assert all(last < first for first, last in zip(losses[:blocks], losses[-blocks:], strict=True))


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_command_line_says_so_in_one_line_and_refuses_what_cannot_be_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "branching.py").write_text(BRANCHING)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["--model", "branching:build", "--at", "first,second", "--data", "fashion-mini", "--threads", "1"]
    short = ["--epochs", "1", "--limit-batches", "1", "--batch-size", "8"]
    assert main(["train", "--method", "dcl", *settings, *short, "--out", str(tmp_path / "run")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1
    assert told[0].startswith("localprop: warning: model: the forward pass of Branching cannot be recorded")
    assert main(["evaluate", str(tmp_path / "run"), "--allow-imports"]) == 0
    assert main(["train", "--method", "dfa", *settings, *short, "--out", str(tmp_path / "refused")]) == 2
    assert "block 'first' cannot run by itself" in capsys.readouterr().err


BRANCHING = """
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU())
        self.second, self.head = nn.Sequential(nn.Linear(12, 12), nn.ReLU()), nn.Linear(12, 10)

    def forward(self, x):
        h = self.first(x)
        return self.head(self.second(h) if h.sum() >= 0 else -self.second(h))


def build(image_shape, num_classes):
    return Branching()
"""
