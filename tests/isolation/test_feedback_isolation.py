"""What sets the feedback rules apart: which weights carry the error, what is alive, and what is left behind."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.rules.feedback import BackwardWeights
from localprop.train.rows import block_rows
from tests.isolation.test_isolation import SavedBytes, batch, build, optimizers_of, stepped

BACKWARD = ("fa", "usf", "brsf", "frsf")
DIRECT = ("dfa", "sdfa")
FEEDBACK = (*BACKWARD, *DIRECT, "drtp")


class Attention(nn.Module):
    """A block of a vision transformer: tokens (N, K, C), a skip connection, linear layers of three axes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + F.relu(self.out(F.scaled_dot_product_attention(q, k, v)), inplace=True)


class Torch(nn.Module):
    """PyTorch's own attention, whose weights are read and never called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class Tokens(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.positions = nn.Conv2d(1, width, 4, stride=4), nn.Parameter(torch.randn(1, 4, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.positions


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(*middle: nn.Module) -> localprop.LocalNetwork:
    return localprop.LocalNetwork([Tokens(8), *middle, nn.Sequential(nn.LayerNorm(8), Mean(), nn.Linear(8, 3))])


def odd_convolutions() -> localprop.LocalNetwork:
    """Groups, dilation, "same" padding of an even kernel, circular padding, one positional axis."""
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 4, 2, padding="same"), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.Sequential(
                nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), nn.Tanh(), nn.Dropout2d(0.2)
            ),
            nn.Sequential(nn.Conv2d(6, 4, 3, stride=(2, 1), padding=1, padding_mode="circular"), nn.GELU()),
            nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 5, 3, stride=2, padding="valid"), nn.Tanh()),
            nn.Sequential(nn.Flatten(), nn.Linear(75, 3)),
        ]
    )


NETWORKS = {
    "vgg8b": lambda: localprop.models.vgg8b((1, 16, 16), 3, width=0.03, dropout=0.2),
    "vit": lambda: vit(Attention(8), Attention(8)),
    "multihead": lambda: vit(Torch(8)),
    "odd": odd_convolutions,
}


def of(method: str, net: localprop.LocalNetwork, x: Tensor, *, seed: int = 0) -> localprop.Rule:
    torch.manual_seed(seed)
    return localprop.methods.build(method, net, num_classes=3, example=x)


def gradients(rule: localprop.Rule, x: Tensor, y: Tensor, step: int = 0, *, passes: int = 1) -> list[Tensor]:
    rule.begin(step)
    for _ in range(passes):
        list(rule.steps(x, y))
    found = [parameter.grad.clone() for parameter in rule.net.parameters()]
    rule.clear_gradients()
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_with_the_weights_as_feedback_it_is_backpropagation_bit_by_bit(
    name: str, precision: torch.dtype | None, layout: torch.memory_format
):
    torch.manual_seed(3)
    side = 16 if name == "vgg8b" else 8
    x, y = torch.randn(6, 1, side, side), batch()[1]
    net = NETWORKS[name]()
    rules = [of(method, copy.deepcopy(net), x).to(memory_format=layout) for method in ("bp", "fa")]
    for rule in rules:
        rule.autocast_dtype = precision
    backprop, alignment = rules
    random = gradients(alignment, x, y)
    for layer, weight in zip(alignment.feedback, alignment.backward_weights(), strict=True):
        layer.matrix.copy_(weight.detach())
    expected, found = gradients(backprop, x, y), gradients(alignment, x, y)
    if name == "odd":  # PyTorch pads an even kernel's input in a step of its own, so its sums round differently
        torch.testing.assert_close(found, expected, rtol=1e-2 if precision else 1e-4, atol=1e-2 if precision else 1e-5)
    else:
        assert same(found, expected)
    assert same(random[-2:], expected[-2:])  # the last layer's gradient is the true one
    assert not same(random, expected)


@pytest.mark.parametrize("method", FEEDBACK)
def test_in_a_network_of_one_block_every_rule_is_backpropagation_bit_by_bit(method: str):
    x, y = batch()
    net = localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))])
    rules = [of(name, copy.deepcopy(net), x) for name in ("bp", method)]
    assert same(*(gradients(rule, x, y) for rule in rules))


@pytest.mark.parametrize("method", [*DIRECT, "drtp"])
def test_direct_rules_go_back_truly_inside_the_last_block(method: str):
    x, y = batch()
    net = localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 3))])
    assert same(*(gradients(of(name, copy.deepcopy(net), x), x, y) for name in ("bp", method)))


@pytest.mark.parametrize("method", BACKWARD)
def test_attention_of_pytorch_sends_the_error_back_truly_and_has_no_feedback(method: str):
    rule = of(method, vit(Torch(8)), torch.zeros(1, 1, 8, 8))
    attention = rule.net.blocks[1].attention
    weights = set(rule.backward_weights())
    assert weights == {rule.net.blocks[0].embed.weight, rule.net.blocks[2][2].weight}
    assert attention.out_proj.weight not in weights


@pytest.mark.parametrize("method", BACKWARD)
def test_the_networks_modules_are_not_changed(method: str):
    net = localprop.models.conv((1, 8, 8), 3, width=0.0625)
    before = {name: (type(module), dict(vars(module))) for name, module in net.named_modules()}
    rule = of(method, net, batch()[0])
    list(stepped(rule, optimizers_of(rule)))
    assert rule.net is net
    for name, module in net.named_modules():
        kind, attributes = before[name]
        assert type(module) is kind
        assert vars(module).keys() == attributes.keys()
        assert "forward" not in vars(module)


def test_no_mode_is_left_after_an_exception():
    rule = build("fa")
    x, weight = batch()[0], nn.Parameter(torch.randn(3, 4))
    with pytest.raises(RuntimeError):
        F.linear(torch.ones(2, 5), weight)
    with pytest.raises(RuntimeError), BackwardWeights({weight: weight}):
        F.linear(torch.ones(2, 5), weight)
    rule.net.blocks[1][0] = nn.Conv2d(5, 8, 3)
    with pytest.raises(RuntimeError):
        list(rule.steps(x, batch()[1]))
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("method", BACKWARD)
def test_a_blocks_graph_is_gone_when_its_gradients_are_final(method: str):
    rule, saved = build(method, dropout=0.1), SavedBytes()
    left = []
    with saved.hooks():
        for _ in stepped(rule, optimizers_of(rule)):
            left.append(saved.now)
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == len(left)
    assert left[-1] == 0


@pytest.mark.parametrize("method", DIRECT)
def test_direct_feedback_holds_one_blocks_graph_at_a_time(method: str):
    rule = build(method, dropout=0.1)
    alone = []
    for _, x, h, _ in rule.net.iter_blocks(batch()[0], at_activation=range(3)):
        del h
        own = SavedBytes()
        with own.hooks():
            index = len(alone)
            block = rule.net.blocks[index]
            h = block(x) if index == 3 else nn.Sequential(*list(block)[:-1])(x)
            loss = F.cross_entropy(h, batch()[1]) if index == 3 else None
            alone.append(own.peak)
        del h, loss
    saved, peaks = SavedBytes(), []
    with saved.hooks():
        for _ in stepped(rule, optimizers_of(rule)):
            assert saved.now == 0
            peaks.append(saved.peak)
            saved.peak = 0
    assert peaks[::-1] == alone


@pytest.mark.parametrize("method", DIRECT)
def test_a_blocks_second_pass_repeats_the_first(method: str):
    """It drops out the same units, sees the same statistics of the batch, and moves the running ones once."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.ReLU())
    net = localprop.LocalNetwork([hidden, nn.Linear(9, 3)])
    rules = [of("bp", copy.deepcopy(net), batch()[0]), of(method, net, batch()[0])]
    outputs: list[Tensor] = []
    hidden[4].register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone()))
    for rule in rules:
        gradients(rule, *batch())
    assert len(outputs) == 2
    assert torch.equal(*outputs)
    assert hidden[3].num_batches_tracked == 1
    for a, b in zip(rules[0].net.buffers(), rules[1].net.buffers(), strict=True):
        assert torch.equal(a, b)
    assert hidden[3].track_running_stats


def test_magnitudes_are_redrawn_every_step_and_shared_by_its_parts():
    x, y = batch()
    net = localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh()), nn.Linear(9, 3)])
    redrawn, fixed = of("brsf", net, x), of("frsf", copy.deepcopy(net), x)
    for rule, differs in ((redrawn, True), (fixed, False)):
        first, second = gradients(rule, x, y, 0), gradients(rule, x, y, 1)
        assert same(first, second) != differs
        assert same(gradients(rule, x, y, 0), first)
        twice = gradients(rule, x, y, 0, passes=2)
        torch.testing.assert_close(twice, [2 * g for g in first])


@pytest.mark.parametrize("method", [name for name in FEEDBACK if name not in ("usf", "brsf")])
def test_feedback_is_drawn_at_the_build_and_kept_in_the_state(method: str):
    x, y = batch()
    net = localprop.models.conv((1, 8, 8), 3, width=0.0625)
    one, again, other = (of(method, copy.deepcopy(net), x, seed=seed) for seed in (0, 0, 1))
    expected = gradients(one, x, y)
    assert same(gradients(again, x, y), expected)
    assert not same(gradients(other, x, y), expected)
    other.load_state_dict(again.state_dict())
    again.load_state_dict(one.state_dict())
    one.load_state_dict(other.state_dict())
    assert same(gradients(one, x, y), gradients(other, x, y))
    assert not set(dict(one.named_buffers())) & set(dict(one.named_parameters()))


def test_weights_come_to_agree_with_their_feedback():
    x, _ = batch()
    rule = of(
        "fa", localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh()), nn.Linear(32, 3)]), x
    )
    optimizers = optimizers_of(rule, lambda group: torch.optim.SGD(group, lr=0.2))
    angles = []
    for _ in range(60):
        steps = list(stepped(rule, optimizers))
        angles.append(float(steps[0].logs["alignment_degrees"]))
    assert angles[-1] < angles[0] - 15


def test_logs_of_blocks_without_a_loss_are_recorded():
    x, y = batch()
    steps = list(build("fa").steps(x, y))
    rows = block_rows(steps, y, place={"step": 1}, names=["a", "b", "c", "d"])
    assert [row["name"] for row in rows] == ["d", "c", "b", "a"]
    assert [row["loss"] is None for row in rows] == [False, True, True, True]
    assert all(0 < row["alignment_degrees"] < 180 and row["norm_ratio"] > 0 for row in rows)
    direct = block_rows(list(build("dfa").steps(x, y)), y, place={"step": 1}, names=["a", "b", "c", "d"])
    assert [row["name"] for row in direct] == ["d", "c"]


def test_networks_that_cannot_be_trained_are_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    with pytest.raises(ValueError, match=r"net: feedback alignment replaces backward weights of Linear.*has none"):
        of("fa", localprop.LocalNetwork([Scale(), Scale()]), torch.zeros(1, 3))
    net = localprop.LocalNetwork(
        [nn.Linear(4, 5), nn.Sequential(nn.ELU(inplace=True), nn.Linear(5, 5)), nn.Linear(5, 3)]
    )
    rule = of("dfa", net, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"net: block '1' changes its input in place.*build it with inplace=False"):
        list(rule.steps(torch.randn(4, 4), torch.tensor([0, 1, 2, 0])))
    assert all(p.grad is None for p in rule.parameters())
    for method in (*BACKWARD, *DIRECT):
        with pytest.raises(ValueError, match=r"blocks: \w+ trains the network as a whole, got range\(0, 1\)"):
            next(iter(build(method).steps(*batch(), blocks=range(0, 1))))
