"""Synthetic gradients, local critics and target propagation against their twins, over three steps of updates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.seed import derive, seeded
from tests.parity.test_training_parity import BUDGET, CASES, CLASSES, EXACT, LR, Case
from tests.reference import critic, synthetic, target
from tests.reference.dictionary import cross_entropy
from tests.reference.prediction import pred_logits
from tests.reference.training import Block, Groups

SYNTHETIC = ("dni", "cdni", "dni-unlocked")
TARGETS = ("tp", "dtp", "direct-dtp")
PROVED = (*SYNTHETIC, "local-critic", *TARGETS)
Found = dict[tuple[int, str], tuple[Tensor | None, list[Tensor]]]
"""Group -> its loss and its gradients."""


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    labels = ([0, 1, 0, 1], [2, 0, 1, 2], [1, 1, 1, 0])
    return [
        (torch.randn(4, *case.input_shape, generator=generator, dtype=torch.float64), torch.tensor(y)) for y in labels
    ]


def build(method: str, case: Case, **settings: object) -> localprop.Rule:
    """Build a rule whose zero-initialised layers are not zero."""
    torch.manual_seed(1)
    net = localprop.LocalNetwork(case.modules()).double()
    example = torch.zeros(2, *case.input_shape, dtype=torch.float64)
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=example, **settings).double()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return rule


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def run(rule: localprop.Rule, number: int, x: Tensor, y: Tensor) -> list[tuple[tuple[int, str], tuple]]:
    """Return what every update of a step does, and step by SGD."""
    rule.begin(number)
    found = []
    for step in rule.steps(x, y):
        group = rule.parameter_groups()[step.key]
        found.append((step.key, (step.loss, [p.grad.clone() for p in group])))
        with torch.no_grad():
            for parameter in group:
                parameter -= LR * parameter.grad
                parameter.grad = None
    return found


def sgd(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [p - LR * g for p, g in zip(parameters, gradients, strict=True)]


def batch_norm_relu(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = z.mean((0, 2, 3), keepdim=True)
    variance = ((z - mean) ** 2).mean((0, 2, 3), keepdim=True)
    normal = (z - mean) / (variance + 1e-5).sqrt()
    return (normal * weight[None, :, None, None] + bias[None, :, None, None]).clamp(min=0)


def synthesiser(h: Tensor, condition: Tensor | None, theta: list[Tensor]) -> Tensor:
    if h.dim() == 2:
        return synthetic.mlp_synthesiser(h, condition, theta)
    first, w1, b1, second, w2, b2, third, bias, *label = theta
    z = F.conv2d(h, first, padding=2)
    if condition is not None:
        z = z + (condition @ label[0].T)[:, :, None, None]
    z = F.conv2d(batch_norm_relu(z, w1, b1), second, padding=2)
    return F.conv2d(batch_norm_relu(z, w2, b2), third, bias, padding=2)


def input_predictor(shape: tuple[int, ...]) -> Block:
    def flat(x: Tensor, theta: list[Tensor]) -> Tensor:
        first, bias, w1, b1, second, last_bias = theta
        z = x.flatten(1) @ first.T + bias
        centred = z - z.mean(1, keepdim=True)
        normal = centred / ((centred**2).mean(1, keepdim=True) + 1e-5).sqrt()
        return ((normal * w1 + b1).clamp(min=0) @ second.T + last_bias).reshape(-1, *shape)

    def maps(x: Tensor, theta: list[Tensor]) -> Tensor:
        first, w1, b1, second, w2, b2, third, bias = theta
        z = batch_norm_relu(F.conv2d(x, first, padding=2), w1, b1)
        z = F.avg_pool2d(z, x.shape[2] // shape[1])
        return F.conv2d(batch_norm_relu(F.conv2d(z, second, padding=2), w2, b2), third, bias, padding=2)

    return maps if len(shape) == 3 else flat


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", SYNTHETIC)
def test_synthetic_gradients_are_those_of_the_twin(method: str, case: Case):
    rule = build(method, case)
    assert isinstance(rule, localprop.rules.SyntheticGradients)
    params = [values(block) for block in rule.net.blocks]
    phi = [values(module) for module in rule.synthesisers.values()]
    pi = [values(module) for module in rule.inputs.values()]
    predictors = [input_predictor(spec.input_shape) for spec in rule.specs[1:]] if pi else None
    for number, (x, y) in enumerate(batches(case)):
        expected = synthetic.synthetic_step(
            case.functions,
            params,
            [synthesiser] * len(phi),
            phi,
            x,
            y,
            classes=None if method == "dni" else CLASSES,
            scale=len(x),
            predictors=predictors,
            predictor_params=pi or None,
        )
        found: Found = dict(run(rule, number, x, y))
        last = len(params) - 1
        for i, gradients in enumerate(expected.gradients):
            torch.testing.assert_close(found[i, "block"], (expected.loss if i == last else None, gradients), **EXACT)
        for i, loss in enumerate(expected.synthesis_losses):
            assert float(loss) > 0
            torch.testing.assert_close(found[i, "synthesiser"], (loss, expected.synthesis_gradients[i]), **EXACT)
        for i, loss in enumerate(expected.input_losses):
            torch.testing.assert_close(found[i + 1, "input"], (loss, expected.input_gradients[i]), **EXACT)
        assert len(found) == len(params) + len(phi) + len(pi)
        params = [sgd(p, g) for p, g in zip(params, expected.gradients, strict=True)]
        phi = [sgd(p, g) for p, g in zip(phi, expected.synthesis_gradients, strict=True)]
        pi = [sgd(p, g) for p, g in zip(pi, expected.input_gradients, strict=True)]
    torch.testing.assert_close([values(block) for block in rule.net.blocks], params, **EXACT)
    torch.testing.assert_close([values(module) for module in rule.synthesisers.values()], phi, **EXACT)
    torch.testing.assert_close([values(module) for module in rule.inputs.values()], pi, **EXACT)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_local_critics_are_those_of_the_twin(case: Case):
    rule = build("local-critic", case, feature_budget=BUDGET)
    params = [values(block) for block in rule.net.blocks]
    phi = [values(objective) for objective in list(rule.objectives)[:-1]]
    critics: list[Block] = [lambda h, p: pred_logits(h, p[0], p[1], BUDGET)] * len(phi)
    for number, (x, y) in enumerate(batches(case)):
        expected = critic.critic_step(case.functions, params, critics, phi, x, y)
        found: Found = dict(run(rule, number, x, y))
        for i, loss in enumerate(expected.losses):
            torch.testing.assert_close(found[i, "block"], (loss, expected.gradients[i]), **EXACT)
        for i, loss in enumerate(expected.critic_losses):
            torch.testing.assert_close(found[i, "critic"], (loss, expected.critic_gradients[i]), **EXACT)
        params = [sgd(p, g) for p, g in zip(params, expected.gradients, strict=True)]
        phi = [sgd(p, g) for p, g in zip(phi, expected.critic_gradients, strict=True)]
    torch.testing.assert_close([values(block) for block in rule.net.blocks], params, **EXACT)
    torch.testing.assert_close([values(objective) for objective in list(rule.objectives)[:-1]], phi, **EXACT)


def feedback(shape: tuple[int, ...], *, hidden: bool) -> Block:
    def layer(v: Tensor, theta: list[Tensor], maps: bool) -> Tensor:
        return F.conv2d(v, theta[0], theta[1], padding=1) if maps else v.flatten(1) @ theta[0].T + theta[1]

    def g(v: Tensor, theta: list[Tensor]) -> Tensor:
        maps = v.dim() == 4 and len(shape) == 3
        if maps:
            factor = shape[1] // v.shape[2]
            v = v.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        v = layer(layer(v, theta[:2], maps).clamp(min=0), theta[2:], maps) if hidden else layer(v, theta, maps)
        return v.reshape(-1, *shape)

    return g


def noise_of(rule: localprop.Rule, number: int, index: int, iteration: int, shapes: list[tuple]) -> list[Tensor]:
    with seeded(derive(rule.seed, "noise", number, 1, index, iteration), torch.device("cpu")):
        return [0.2 * torch.randn(4, *shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("feedback_loss", "hidden"), [("reconstruction", 0), ("jacobian", 5)])
@pytest.mark.parametrize("method", TARGETS)
def test_targets_are_those_of_the_twin(method: str, feedback_loss: str, hidden: int, case: Case):
    settings = {"nudging": 0.6, "noise": 0.2, "iterations": 2, "feedback_loss": feedback_loss, "hidden": hidden}
    rule = build(method, case, top="logits", **settings)
    direct = method == "direct-dtp"
    params = [values(block) for block in rule.net.blocks]
    phi: Groups = [values(module) for module in rule.feedback]
    shapes = [spec.shape for spec in rule.specs]
    feedbacks = [feedback(shape, hidden=bool(hidden)) for shape in shapes[:-1]]
    for number, (x, y) in enumerate(batches(case)):
        found = run(rule, number, x, y)
        for iteration in range(2):
            drawn = [
                noise_of(rule, number, i, iteration, [shapes[i], shapes[-1] if direct else shapes[i + 1]])
                for i in range(len(phi))
            ]
            losses, gradients = target.feedback_step(
                case.functions,
                params,
                feedbacks,
                phi,
                x,
                [e for e, _ in drawn],
                [d for _, d in drawn] if feedback_loss == "jacobian" else None,
                direct=direct,
            )
            for i in range(len(phi)):
                assert found[2 * i + iteration][0] == (i, "feedback")
                torch.testing.assert_close(found[2 * i + iteration][1], (losses[i], gradients[i]), **EXACT)
            phi = [sgd(p, g) for p, g in zip(phi, gradients, strict=True)]
        expected = target.target_step(case.functions, params, feedbacks, phi, x, y, eta=0.6, rule=method)
        for i, (key, step) in enumerate(reversed(found[2 * len(phi) :])):
            assert key == (i, "block")
            torch.testing.assert_close(step, (expected.losses[i], expected.gradients[i]), **EXACT)
        params = [sgd(p, g) for p, g in zip(params, expected.gradients, strict=True)]
    torch.testing.assert_close([values(block) for block in rule.net.blocks], params, **EXACT)
    torch.testing.assert_close([values(module) for module in rule.feedback], phi, **EXACT)


def gradient_below_the_last(case: Case, params: Groups, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the last block's loss, the gradient of each sample's own loss at its input, and its own gradients."""
    *_, below, _ = target.forward_outputs(case.functions, params, x)
    leaf, theta = below.requires_grad_(), [p.clone().requires_grad_() for p in params[-1]]
    loss = cross_entropy(case.functions[-1](leaf, theta), y)
    arriving, *own = torch.autograd.grad(loss, [leaf, *theta])
    return loss.detach(), len(x) * arriving, own


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", TARGETS)
def test_targets_from_the_last_hidden_block_are_those_of_the_twin(method: str, case: Case):
    """The twin's network ends there, with a top target made from the gradient that comes through the last block."""
    rule = build(method, case, nudging=0.6, noise=0.2, feedback_loss="reconstruction", top="hidden")
    params = [values(block) for block in rule.net.blocks]
    phi: Groups = [values(module) for module in rule.feedback]
    shapes = [spec.shape for spec in rule.specs]
    feedbacks = [feedback(shape, hidden=False) for shape in shapes[:-2]]
    hidden = case.functions[:-1]
    for number, (x, y) in enumerate(batches(case)):
        found = run(rule, number, x, y)
        noises = [noise_of(rule, number, i, 0, [shapes[i]])[0] for i in range(len(phi))]
        losses, gradients = target.feedback_step(
            hidden, params[:-1], feedbacks, phi, x, noises, direct=method == "direct-dtp"
        )
        for i in range(len(phi)):
            assert found[i][0] == (i, "feedback")
            torch.testing.assert_close(found[i][1], (losses[i], gradients[i]), **EXACT)
        phi = [sgd(p, g) for p, g in zip(phi, gradients, strict=True)]
        loss, arriving, last = gradient_below_the_last(case, params, x, y)
        top = target.forward_outputs(hidden, params, x)[-1] - 0.6 * arriving
        step = target.target_step(
            hidden, params[:-1], feedbacks, phi, x, y, eta=0.6, rule=method, top=top, last_by_target=True
        )
        expected = [*zip(step.losses, step.gradients, strict=True), (loss, last)]
        for i, (key, done) in enumerate(reversed(found[len(phi) :])):
            assert key == (i, "block")
            torch.testing.assert_close(done, expected[i], **EXACT)
        params = [sgd(p, g) for p, (_, g) in zip(params, expected, strict=True)]
    torch.testing.assert_close([values(block) for block in rule.net.blocks], params, **EXACT)
