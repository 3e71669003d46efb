"""The forward-only methods against their twins: losses, gradients and updates over two or three steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.functional.predictive import lateral_inhibition
from localprop.rules import forward_gradient
from localprop.rules.predictive import PredictiveForwardForward
from localprop.types import Normalisation
from tests.reference import goodness as twin
from tests.reference import hebbian as twin_hebbian
from tests.reference import pepita as twin_pepita
from tests.reference import predictive as twin_predictive
from tests.reference.feedback import IDENTITY, RELU, Layer
from tests.reference.training import Groups

PROVED = ("mono-forward", "cwcomp", "ff", "symba", "pff", "softhebb", "forward-gradient", "pepita")
EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLASSES = 3
LR = 0.05
LABELS = ([0, 1, 0, 1], [2, 0, 1, 2], [1, 1, 1, 0])


def conv_net() -> localprop.LocalNetwork:
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(inplace=True)),
            nn.Linear(7, CLASSES),
        ]
    ).double()


HIDDEN = [
    lambda x, p: F.conv2d(x, p[0], p[1], padding=1).clamp(min=0),
    lambda x, p: (x.flatten(1) @ p[0].T + p[1]).clamp(min=0),
]


def batches() -> Iterator[tuple[int, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for number, labels in enumerate(LABELS):
        yield number, torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64), torch.tensor(labels)


def build(method: str, **settings: object) -> localprop.Rule:
    torch.manual_seed(1)
    example = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    return localprop.methods.build(method, conv_net(), num_classes=CLASSES, example=example, **settings).double()


def parameters_of(rule: localprop.Rule, blocks: int) -> Groups:
    return [[p.detach().clone() for p in block.parameters()] for block in list(rule.net.blocks)[:blocks]]


def train(rule: localprop.Rule, number: int, x: Tensor, y: Tensor) -> tuple[list[Tensor], dict[nn.Parameter, Tensor]]:
    """Do one step, and return losses and gradients as they were yielded."""
    rule.begin(number)
    groups = rule.parameter_groups()
    losses, gradients = [], {}
    for step in rule.steps(x, y):
        losses.append(step.loss)
        for p in groups[step.key]:
            gradients[p] = p.grad
            with torch.no_grad():
                p -= LR * p.grad
            p.grad = None
    return losses, gradients


def of_blocks(rule: localprop.Rule, gradients: dict[nn.Parameter, Tensor], blocks: int) -> Groups:
    return [[gradients[p] for p in block.parameters()] for block in list(rule.net.blocks)[:blocks]]


def test_mono_forward():
    rule = build("mono-forward")
    for number, x, y in batches():
        projections = [o.projection.weight for o in list(rule.objectives)[:2]]
        expected = twin.mono_forward_step(HIDDEN, parameters_of(rule, 2), [p.detach() for p in projections], x, y)
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(losses[:2], expected.losses, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected.gradients, **EXACT)
        torch.testing.assert_close([gradients[p] for p in projections], expected.auxiliary, **EXACT)


def test_cwcomp_where_the_classes_do_not_divide_the_channels():
    rule = build("cwcomp")
    for number, x, y in batches():
        expected = twin.group_step(HIDDEN, parameters_of(rule, 2), x, y, CLASSES)
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(losses[:2], expected.losses, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected.gradients, **EXACT)


def record_negatives(rule: localprop.Rule, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    drawn, draw = [], rule.wrong

    def wrong(x: Tensor, y: Tensor) -> Tensor:
        drawn.append(draw(x, y))
        return drawn[-1]

    monkeypatch.setattr(rule, "wrong", wrong)
    return drawn


def check_classifier(
    rule: localprop.Rule, params: Groups, neutral: Tensor, border: str, y: Tensor, loss: Tensor, found: list[Tensor]
) -> None:
    """Hold the last block against the cross-entropy of a classifier on the neutral copy."""
    features = twin.one_pass_features(HIDDEN, params[:2], neutral, border=border)
    weight, bias = (p.clone().requires_grad_() for p in params[2])
    expected = F.cross_entropy(twin.one_pass_logits(features, weight, bias), y)
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(found, list(torch.autograd.grad(expected, [weight, bias])), **EXACT)


@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize("border", ["rms", "l2"])
@pytest.mark.parametrize("negatives", ["uniform", "hard"])
def test_ff(monkeypatch: pytest.MonkeyPatch, kind: str, border: str, negatives: str):
    settings = {"label": "overlay", "goodness": kind, "border": border, "negatives": negatives, "threshold": 0.5}
    rule = build("ff", **settings, peer_weight=0.03)
    rule.normalisation = Normalisation((0.25, 0.25), (0.5, 0.5))
    marks = {"high": 1.5, "low": -0.5, "every_channel": True}
    drawn = record_negatives(rule, monkeypatch)
    running = [torch.zeros(width, dtype=torch.float64) for width in (4, 7)]
    thetas = [32.0, 3.5] if kind == "sum" else [0.5, 0.5]
    for number, x, y in batches():
        params = parameters_of(rule, 3)
        losses, gradients = train(rule, number, x, y)
        expected = twin.forward_forward_step(
            HIDDEN,
            params[:2],
            twin.overlay_label(x, y, CLASSES, **marks),
            twin.overlay_label(x, drawn[-1], CLASSES, **marks),
            thetas,
            kind=kind,
            border=border,
            running=running,
            per_channel=True,
        )
        running = expected.state
        torch.testing.assert_close(losses[:2], expected.losses, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected.gradients, **EXACT)
        torch.testing.assert_close([peer.activity for peer in rule.peers], running, **EXACT)
        twin.check_negatives(y, drawn[-1])
        neutral = twin.overlay_neutral(x, CLASSES, **marks)
        found = [gradients[p] for p in rule.net.blocks[2].parameters()]
        check_classifier(rule, params, neutral, border, y, losses[2], found)


def test_ff_answers_by_the_goodness_of_every_label():
    rule = build("ff", label="overlay").eval()
    _, x, y = next(batches())
    inputs = [twin.overlay_label(x, torch.full_like(y, z), CLASSES, every_channel=True) for z in range(CLASSES)]
    expected = twin.label_goodness(HIDDEN, parameters_of(rule, 2), inputs)
    torch.testing.assert_close(rule.predict(x), expected, **EXACT)


def test_ff_answers_by_a_classifier_on_all_activities():
    rule = build("ff", label="overlay", inference="softmax")
    for number, x, y in batches():
        params, weight, bias = parameters_of(rule, 2), *(p.detach().clone() for p in rule.readout.parameters())
        features = twin.one_pass_features(HIDDEN, params, twin.overlay_neutral(x, CLASSES, every_channel=True))
        logits = twin.one_pass_logits(features, weight.requires_grad_(), bias.requires_grad_())
        expected = F.cross_entropy(logits, y)
        torch.testing.assert_close(rule.predict(x), logits.detach(), **EXACT)
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(losses[-1], expected.detach(), **EXACT)
        found = [gradients[p] for p in rule.readout.parameters()]
        torch.testing.assert_close(found, list(torch.autograd.grad(expected, [weight, bias])), **EXACT)


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_symba(monkeypatch: pytest.MonkeyPatch, kind: str):
    rule = build("symba", label="pattern", goodness=kind, strength=0.5)
    drawn = record_negatives(rule, monkeypatch)
    patterns = 0.5 * rule.label.patterns
    for number, x, y in batches():
        params = parameters_of(rule, 3)
        losses, gradients = train(rule, number, x, y)
        positive, negative = x + patterns[y], x + patterns[drawn[-1]]
        expected = twin.symba_step(HIDDEN, params[:2], positive, negative, alpha=4.0, kind=kind)
        torch.testing.assert_close(losses[:2], expected.losses, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected.gradients, **EXACT)
        found = [gradients[p] for p in rule.net.blocks[2].parameters()]
        check_classifier(rule, params, x + patterns.mean(0), "rms", y, losses[2], found)


def predictive_rule(**settings: object) -> PredictiveForwardForward:
    torch.manual_seed(1)
    flat = [nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU()), nn.Linear(5, 5, bias=False), nn.Linear(5, CLASSES)]
    example = torch.zeros(2, 6, dtype=torch.float64)
    settings = {"goodness": "sum", "border": "l2", "group": 2, "latent": 2, **settings}
    net = localprop.LocalNetwork(flat).double()
    return localprop.methods.build("pff", net, num_classes=CLASSES, example=example, **settings).double()


def lateral_of(weight: Tensor, size: int) -> Tensor:
    """Lay the groups' matrices out on the diagonal of one of all units."""
    return torch.block_diag(*weight)[:size, :size]


def circuit_of(rule: PredictiveForwardForward, tensors: dict[nn.Parameter, Tensor] | None = None) -> Groups:
    """Return W, V and Lambda of each hidden block, or what `tensors` has for them."""

    def of(parameter: nn.Parameter) -> Tensor:
        return parameter.detach().clone() if tensors is None else tensors[parameter]

    groups = []
    for block, above, lateral in zip(rule.net.blocks, rule.top_down, rule.lateral, strict=False):
        [w], [v], [group] = block.parameters(), above.parameters(), lateral.parameters()
        groups.append([of(w), of(v), lateral_of(of(group), w.shape[0])])
    return groups


def recorded(rule: PredictiveForwardForward, monkeypatch: pytest.MonkeyPatch, name: str) -> list[Tensor]:
    drawn, draw = [], getattr(rule, name)

    def record(*args: object) -> Tensor:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(rule, name, record)
    return drawn


def test_pff(monkeypatch: pytest.MonkeyPatch):
    """Two rounds a batch: blocks, then generators, each updated at once."""
    rule = predictive_rule(rounds=2, threshold=0.5, noise=0.1, generator_noise=0.2)
    noises, wrong = recorded(rule, monkeypatch, "_drawn"), recorded(rule, monkeypatch, "_wrong")
    groups = rule.parameter_groups()
    generator = torch.Generator().manual_seed(3)
    for number, labels in enumerate(LABELS):
        x, y = torch.randn(4, 6, generator=generator, dtype=torch.float64), torch.tensor(labels)
        rule.begin(number)
        noises.clear()
        steps = rule.steps(x, y)
        states = [torch.cat([z, z]) for z in twin_predictive.bottom_up_states(circuit_of(rule), x)]
        features = twin.normalised(states[-1][:4], "l2")
        weight, bias = (p.detach().clone().requires_grad_() for p in rule.net.blocks[2].parameters())
        latent = None
        for _ in range(2):
            params, weights = circuit_of(rule), [p.detach().clone() for p in rule.generators.parameters()]
            done = [proceed(rule, groups, next(steps)) for _ in range(5)]
            latent = noises[0] if latent is None else latent
            context = twin_predictive.label_context(torch.cat([y, wrong[-1]]), CLASSES)
            moved = twin_predictive.representation_step(
                params, states, torch.cat([x, x]), context, noises[-4:-2], 2.5, group=2
            )
            states = moved.states
            predicted = twin_predictive.generative_step(weights, states, torch.cat([x, x]), latent, noises[-2:])
            latent = predicted.latent
            found = {p: gradient for _, gradients in done for p, gradient in gradients.items()}
            torch.testing.assert_close([loss for loss, _ in done], [*moved.losses, *predicted.losses], **EXACT)
            torch.testing.assert_close(circuit_of(rule, found), moved.gradients, **EXACT)
            torch.testing.assert_close([found[p] for p in rule.generators.parameters()], predicted.gradients, **EXACT)
        loss, gradients = proceed(rule, groups, next(steps))
        expected = F.cross_entropy(F.linear(features, weight, bias), y)
        torch.testing.assert_close(loss, expected.detach(), **EXACT)
        torch.testing.assert_close(
            list(gradients.values()), list(torch.autograd.grad(expected, [weight, bias])), **EXACT
        )
        assert list(steps) == []
        twin.check_negatives(y, wrong[-1])


def proceed(
    rule: localprop.Rule, groups: dict[localprop.types.Key, list[nn.Parameter]], step: localprop.BlockStep
) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """Update a group, and return its loss and gradients."""
    gradients = {p: p.grad for p in groups[step.key]}
    with torch.no_grad():
        for p in groups[step.key]:
            p -= LR * p.grad
            p.grad = None
    return step.loss, gradients


def test_pff_answers_by_the_goodness_of_the_middle_rounds():
    rule = predictive_rule(rounds=6).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = twin_predictive.label_scores(circuit_of(rule), x, CLASSES, steps=6, group=2)
    torch.testing.assert_close(rule.predict(x), expected, **EXACT)
    torch.testing.assert_close(rule.exits(x)[0] + rule.exits(x)[1], expected, **EXACT)


def test_lateral_inhibition_of_maps_is_that_of_every_position():
    z = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    weight = torch.randn(2, 3, 3, dtype=torch.float64)
    matrix = twin_predictive.lateral_matrix(lateral_of(weight, 5), 3)
    expected = torch.einsum("ij,njhw->nihw", matrix, z)
    torch.testing.assert_close(lateral_inhibition(z, weight), expected, **EXACT)


def test_softhebb():
    rule = build("softhebb", temperature=0.5)
    for number, x, y in batches():
        params = parameters_of(rule, 3)
        h = HIDDEN[0](x, params[0]).flatten(1)
        changes = [
            twin_hebbian.soft_hebb_conv(x, params[0][0], padding=1, temperature=0.5),
            twin_hebbian.soft_hebb_linear(h, params[1][0], temperature=0.5),
        ]
        losses, gradients = train(rule, number, x, y)
        expected = [[-change, torch.zeros_like(bias)] for change, (_, bias) in zip(changes, params, strict=False)]
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected, **EXACT)
        weight, bias = (p.clone().requires_grad_() for p in params[2])
        loss = F.cross_entropy(F.linear(HIDDEN[1](h, params[1]), weight, bias), y)
        torch.testing.assert_close(losses[2], loss.detach(), **EXACT)
        found = [gradients[p] for p in rule.net.blocks[2].parameters()]
        torch.testing.assert_close(found, list(torch.autograd.grad(loss, [weight, bias])), **EXACT)


def record_directions(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    drawn: list[Tensor] = []
    draw: Callable[..., Tensor] = forward_gradient._direction

    def direction(like: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(draw(like, generator))
        return drawn[-1]

    monkeypatch.setattr(forward_gradient, "_direction", direction)
    return drawn


@pytest.mark.parametrize("perturb", ["activities", "weights"])
def test_forward_gradient(monkeypatch: pytest.MonkeyPatch, perturb: str):
    rule = build("forward-gradient", perturb=perturb)
    drawn = record_directions(monkeypatch)
    for number, x, y in batches():
        params = parameters_of(rule, 3)
        heads = [[p.detach().clone().requires_grad_() for p in o.parameters()] for o in rule.objectives]

        def logits(i: int, h: Tensor, heads: Groups = heads) -> Tensor:
            return F.linear(h.flatten(1), *heads[i]) if heads[i] else h

        drawn.clear()
        losses, gradients = train(rule, number, x, y)
        if perturb == "activities":
            step, directions = twin_hebbian.local_activity_step, drawn
        else:
            step, directions = twin_hebbian.local_weight_step, [drawn[:2], drawn[2:]]
        expected = step(
            HIDDEN, params[:2], directions, x, y, lambda i, h, y, logits=logits: F.cross_entropy(logits(i, h), y)
        )
        torch.testing.assert_close(losses[:2], expected.losses, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 2), expected.gradients, **EXACT)
        h = x
        for i in range(2):
            h = HIDDEN[i](h, params[i])
            exact = list(torch.autograd.grad(F.cross_entropy(logits(i, h), y), heads[i]))
            torch.testing.assert_close([gradients[p] for p in rule.objectives[i].parameters()], exact, **EXACT)


def test_pepita():
    rule = build("pepita")
    for number, x, y in batches():
        params = parameters_of(rule, 3)
        layers = [
            Layer(*params[0], RELU, padding=1),
            Layer(*params[1], RELU),
            Layer(*params[2], IDENTITY),
        ]
        expected_loss, expected = twin_pepita.pepita_gradients(layers, rule.feedback.flatten(1).T, x, y)
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(losses, [expected_loss] * 3, **EXACT)
        torch.testing.assert_close(of_blocks(rule, gradients, 3), [list(pair) for pair in expected], **EXACT)
