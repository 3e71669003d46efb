"""Rules whose blocks learn from messages: what reaches what, one graph at a time, and what a batch leaves behind."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional import target as functional
from localprop.functional.distance import squared_error
from localprop.rules import TargetPropagation
from localprop.rules.chained import Chained
from localprop.train.executor import LocalExecutor
from tests.isolation.test_isolation import CLASSES, SavedBytes, batch, build, network, optimizers_of, stepped
from tests.traits import accepting

ROUNDS = ["pff"]
"""Methods whose blocks run and learn in many rounds a batch."""
CHAINED = [name for name in accepting("isolation") if isinstance(build(name), Chained) and name not in ROUNDS]
SYNTHETIC = ["dni", "cdni", "dni-unlocked"]
TARGETS = ["tp", "dtp", "direct-dtp"]


def test_these_are_the_methods_that_send_messages():
    assert sorted(CHAINED) == sorted([*SYNTHETIC, *TARGETS, "local-critic"])


@pytest.mark.parametrize("method", [*CHAINED, *ROUNDS])
def test_only_the_yielded_group_has_gradients(method: str):
    rule = build(method, dropout=0.1)
    groups = rule.parameter_groups()
    for step in stepped(rule, optimizers_of(rule)):
        assert {p for p in rule.parameters() if p.grad is not None} == set(groups[step.key])


@pytest.mark.parametrize("method", CHAINED)
def test_later_groups_leave_earlier_gradients_alone(method: str):
    rule = build(method)
    earlier: dict[nn.Parameter, Tensor] = {}
    for step in rule.steps(*batch()):
        for parameter, gradient in earlier.items():
            assert torch.equal(parameter.grad, gradient)
        earlier |= {p: p.grad.clone() for p in rule.parameter_groups()[step.key]}


@pytest.mark.parametrize("method", [*CHAINED, *ROUNDS])
def test_no_graph_is_alive_at_a_yield(method: str):
    rule, saved = build(method, dropout=0.1), SavedBytes()
    with saved.hooks():
        for _ in stepped(rule, optimizers_of(rule)):
            assert saved.now == 0
    assert saved.peak > 0


@pytest.mark.parametrize("method", CHAINED)
def test_no_graph_is_alive_when_a_block_or_a_predictor_begins_one(method: str):
    rule, saved, alive = build(method, dropout=0.1), SavedBytes(), []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            alive.append((module, saved.now))

    # A critic's graph stands on that of its block.
    predictors = [module for name, module in rule.named_children() if name not in ("net", "objectives")]
    children = [child for module in predictors for child in module.children()]
    for module in (*rule.net.blocks, *children):
        module.register_forward_pre_hook(look)
    with saved.hooks():
        for _ in stepped(rule, optimizers_of(rule)):
            assert saved.now == 0
    assert saved.peak > 0
    # A loss may read one predictor several times, on one graph.
    begun = [next(looks) for _, looks in itertools.groupby(alive, key=lambda look: look[0])]
    assert [now for _, now in begun] == [0] * (len(rule.net) + len(children))


@pytest.mark.parametrize("method", [*CHAINED, *ROUNDS])
def test_a_stretch_of_blocks_is_refused(method: str):
    rule = build(method)
    with pytest.raises(ValueError, match=r"blocks: \w+ sends messages .* as a whole, got range\(0, 2\); choose"):
        next(iter(rule.steps(*batch(), blocks=range(0, 2))))
    done = {step.key for step in stepped(rule, optimizers_of(rule), blocks=range(0, 4))}
    assert done == set(rule.parameter_groups())


@pytest.mark.parametrize("method", CHAINED)
def test_one_block_is_trained_as_backprop_does(method: str):
    x, y = batch()
    gradients = []
    for name in (method, "bp"):
        torch.manual_seed(0)
        net = localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))])
        rule = localprop.methods.build(name, net, num_classes=CLASSES, example=x)
        [step] = rule.steps(x, y)
        gradients.append([step.loss, *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("method", [*CHAINED, *ROUNDS])
def test_training_goes_on_bitwise_from_a_saved_state(method: str):
    def train(executor: LocalExecutor, numbers: range) -> None:
        for number in numbers:
            executor.step(number, *batch(number))

    rule = build(method, dropout=0.2)
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.01))
    train(executor, range(2))
    saved = copy.deepcopy((rule.state_dict(), executor.state_dict()))
    train(executor, range(2, 4))
    torch.manual_seed(77)
    other = build(method, dropout=0.2)
    again = LocalExecutor(other, lambda group: torch.optim.AdamW(group, lr=0.01))
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(again, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(rule.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", CHAINED)
def test_the_second_block_runs_as_often_as_the_catalogue_says(method: str):
    rule = build(method)
    runs = []
    rule.net.blocks[1].register_forward_hook(lambda *_: runs.append(1))
    list(stepped(rule, optimizers_of(rule)))
    assert len(runs) == localprop.methods.get(method).passes


def normalised() -> localprop.LocalNetwork:
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()),
            nn.Linear(8, CLASSES),
        ]
    )


@pytest.mark.parametrize("method", [name for name in CHAINED if name != "dni-unlocked"])
def test_running_statistics_move_once_a_batch(method: str):
    torch.manual_seed(0)
    net = normalised()
    plain = copy.deepcopy(net)
    x, y = batch()
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=x)
    for _ in rule.steps(x, y):
        rule.clear_gradients()
    plain(x)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffer, net.get_buffer(name), rtol=1e-5, atol=1e-7, msg=name)
    assert all(module.track_running_stats for module in net.modules() if isinstance(module, nn.BatchNorm2d))


def test_hidden_blocks_stand_still_until_their_synthesiser_has_learned():
    """Its last layer starts at zero: the first gradients are zero, and those of the next step are not."""
    rule = build("dni")
    before = [p.clone() for p in rule.net.blocks[2].parameters()]
    executor = LocalExecutor(rule, lambda group: torch.optim.SGD(group, lr=0.1))
    executor.step(0, *batch())
    assert all(torch.equal(p, q) for p, q in zip(rule.net.blocks[2].parameters(), before, strict=True))
    executor.step(1, *batch())
    assert not any(torch.equal(p, q) for p, q in zip(rule.net.blocks[2].parameters(), before, strict=True))


def test_a_perfect_synthesiser_gives_the_gradients_of_backprop():
    x, y = batch()
    rule, other = build("dni").double(), build("bp").double()
    other.net.load_state_dict(rule.net.state_dict())
    x = x.double()
    outputs = [x]
    for block in other.net.blocks:
        outputs.append(block(outputs[-1]))
    loss = nn.functional.cross_entropy(outputs[-1], y)
    true = torch.autograd.grad(loss, outputs[1:-1], retain_graph=True)
    loss.backward()

    class Oracle(nn.Module):
        def __init__(self, gradient: Tensor) -> None:
            super().__init__()
            self.gradient = nn.Parameter(gradient * len(x))

        def forward(self, h: Tensor, y: Tensor) -> Tensor:
            return self.gradient

    for index, gradient in enumerate(true):
        rule.synthesisers[str(index)] = Oracle(gradient)
    for step in rule.steps(x, y):
        if step.key[1] == "synthesiser":
            torch.testing.assert_close(step.loss, torch.zeros_like(step.loss))
    for a, b in zip(rule.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def linear_chain(*, difference: bool = True, direct: bool = False) -> TargetPropagation:
    """Return three square linear blocks with the exact inverse of each as its feedback."""
    torch.manual_seed(0)
    net = localprop.LocalNetwork([nn.Linear(CLASSES, CLASSES) for _ in range(3)]).double()
    specs = net.specs(torch.zeros(2, CLASSES, dtype=torch.float64), CLASSES)

    class Inverse(nn.Module):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.layers = nn.ModuleList(copy.deepcopy(layers))

        def forward(self, h: Tensor) -> Tensor:
            for layer in reversed(self.layers):
                h = torch.linalg.solve(layer.weight, (h - layer.bias).T).T
            return h

    layers = list(net.blocks)
    feedback = [Inverse(layers[1:] if direct and index == 0 else [layers[index + 1]]) for index in range(2)]
    return TargetPropagation(
        net,
        specs,
        feedback,
        difference=difference,
        direct=direct,
        top="logits",
        nudging=0.5,
        noise=0.1,
        iterations=1,
        feedback_loss="reconstruction",
        feedback_lr=1.0,
    )


@pytest.mark.parametrize("direct", [False, True])
def test_with_exact_inverses_difference_targets_are_those_without_the_difference(direct: bool):
    x = torch.randn(5, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0, 1])
    losses = []
    for difference in (True, False):
        rule = linear_chain(difference=difference, direct=direct)
        losses.append([step.loss for step in rule.steps(x, y)])
        rule.clear_gradients()
    torch.testing.assert_close(losses[0], losses[1])
    assert all(float(loss) == pytest.approx(0, abs=1e-20) for loss in losses[0][:2])  # nothing to learn for feedback
    assert all(float(loss) > 1e-6 for loss in losses[0][2:])


def test_a_difference_target_with_an_exact_inverse_is_the_inverse_of_the_target():
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h, above_target = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def g(v: Tensor) -> Tensor:
        return torch.linalg.solve(weight, v.T).T

    target = functional.difference_target(h, g(above_target), g(h @ weight.T))
    torch.testing.assert_close(target, g(above_target))


def test_the_gradient_at_the_logits_is_that_of_each_samples_own_loss():
    logits, y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 2])
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), logits)
    torch.testing.assert_close(functional.logit_gradient(logits, y), expected)


@pytest.mark.parametrize("method", TARGETS)
def test_below_hidden_targets_the_block_is_trained_as_backprop_does_up_to_the_nudging(method: str):
    """The last hidden target lies `nudging` N gradients away, so its loss has `nudging` times the gradient."""
    x, y = batch()
    torch.manual_seed(0)
    settings = {"top": "hidden", "nudging": 0.25}
    rule = localprop.methods.build(method, network(), num_classes=CLASSES, example=x, **settings).double()
    other = build("bp").double()
    other.net.load_state_dict(rule.net.state_dict())
    list(rule.steps(x.double(), y))
    list(other.steps(x.double(), y))
    for index, factor in ((3, 1.0), (2, 0.25)):
        for a, b in zip(rule.net.blocks[index].parameters(), other.net.blocks[index].parameters(), strict=True):
            torch.testing.assert_close(a.grad, factor * b.grad)


def test_the_transposed_jacobian_is_the_minimum_of_the_jacobian_loss():
    """Noise with exactly the covariance sigma^2 I: +-sigma sqrt(D) along every axis."""
    sigma, width = 0.1, 3
    e = sigma * width**0.5 * torch.cat([torch.eye(width), -torch.eye(width)]).double()
    forward = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = forward.T.clone().requires_grad_()
    h = torch.randn(2 * width, width, dtype=torch.float64)
    fed = h @ forward.T @ g.T
    fed_noisy, fed_disturbed = (h + e) @ forward.T @ g.T, (h @ forward.T + e) @ g.T
    loss = functional.jacobian_loss(fed_noisy, fed, fed_disturbed, e)
    assert loss.item() == pytest.approx(-(sigma**2) * float(forward.square().sum()))
    (gradient,) = torch.autograd.grad(loss, g)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_the_squared_error_sums_over_units_and_averages_over_samples():
    predicted, target = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    expected = sum(float((p - t).square().sum()) for p, t in zip(predicted, target, strict=True)) / 3
    assert float(squared_error(predicted, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", TARGETS)
@pytest.mark.parametrize("feedback_loss", ["reconstruction", "jacobian"])
def test_feedback_is_updated_as_often_as_asked_with_fresh_noise(method: str, feedback_loss: str):
    torch.manual_seed(0)
    settings = {"iterations": 3, "feedback_loss": feedback_loss, "hidden": 5}
    rule = localprop.methods.build(method, network(), num_classes=CLASSES, example=batch()[0], **settings)
    steps = list(rule.steps(*batch()))
    keys = [step.key for step in steps]
    assert keys == [(i, "feedback") for i in range(2) for _ in range(3)] + [(i, "block") for i in (3, 2, 1, 0)]
    assert len({float(step.loss) for step in steps[:6]}) == 6
    with pytest.raises(ValueError, match="accumulate: TargetPropagation updates several times a batch"):
        LocalExecutor(rule, lambda group: torch.optim.SGD(group, lr=0.1), accumulate=2)


def rates(method: str, **settings: float) -> dict[tuple[int | None, str], float]:
    rule = localprop.methods.build(method, network(), num_classes=CLASSES, example=batch()[0], **settings)
    executor = LocalExecutor(rule, lambda group: torch.optim.SGD(group, lr=0.1))
    executor.step(0, *batch())
    return {key: optimizer.param_groups[0]["lr"] for key, optimizer in executor.optimizers.items()}


def test_feedback_learns_at_its_own_rate():
    assert all(
        rate == (0.025 if group == "feedback" else 0.1) for (_, group), rate in rates("dtp", feedback_lr=0.25).items()
    )


def test_hidden_blocks_learn_at_their_own_rate_from_synthetic_gradients():
    for (block, group), rate in rates("dni-unlocked", hidden_lr=0.25).items():
        assert rate == (0.025 if group == "block" and block < 3 else 0.1)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("dni", {"kernel": 4}, "kernel: must be odd and positive, to keep the size of maps, got 4"),
        ("dni", {"hidden": 0}, "hidden: must be at least 1, got 0"),
        ("dni-unlocked", {"hidden": -1}, "hidden: must be at least 1, got -1"),
        ("dni", {"conditioned": True}, "conditioned: not a setting of method 'dni'"),
        ("local-critic", {"feature_budget": 0}, "feature_budget: must be at least 1, got 0"),
        ("dtp", {"nudging": 0.0}, r"nudging: must be positive and finite, got 0\.0"),
        ("dtp", {"noise": float("inf")}, "noise: must be positive and finite, got inf"),
        ("tp", {"iterations": 0}, "iterations: feedback needs at least 1 update a batch, got 0"),
        ("tp", {"top": "input"}, "top: must be 'logits' or 'hidden', got 'input'"),
        ("cdni", {"hidden_lr": 0.0}, r"hidden_lr: must be positive and finite, got 0\.0"),
        ("tp", {"feedback_loss": "none"}, "feedback_loss: must be 'reconstruction' or 'jacobian', got 'none'"),
        ("direct-dtp", {"hidden": -1}, r"hidden: must be at least 0 \(no hidden layer\), got -1"),
        ("direct-dtp", {"feedback_lr": -1.0}, r"feedback_lr: must be positive and finite, got -1\.0"),
    ],
)
def test_settings_out_of_their_range_are_refused(method: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        localprop.methods.build(method, network(), num_classes=CLASSES, example=batch()[0], **settings)


def test_outputs_that_no_predictor_is_made_for_are_refused():
    net = localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Unflatten(1, (2, 2))),
            nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES)),
        ]
    )
    with pytest.raises(ValueError, match=r"block '0' gives outputs of shape \(2, 2, 6, 6\); this method needs"):
        localprop.methods.build("dni", net, num_classes=CLASSES, example=batch()[0])
