"""The feedback family against its twin: gradients by hand, and three steps of updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional import feedback
from localprop.rules import DirectFeedback, FeedbackAlignment
from localprop.seed import derive
from tests.reference import feedback as twin

EXACT = {"rtol": 1e-9, "atol": 1e-12}
LR = 0.05
CLASSES = 3
BACKWARD = ("fa", "usf", "brsf", "frsf")
DIRECT = ("dfa", "sdfa", "drtp")
PROVED = (*BACKWARD, *DIRECT)
VARIANTS = {"sdfa-centred": ("sdfa", {"centred": True})}


@dataclass(frozen=True)
class Case:
    """One network, written twice: as modules, and as the twin's layers around weights and biases."""

    modules: Callable[[], list[nn.Module]]
    layers: Callable[[list[tuple[Tensor, Tensor | None]]], list[twin.Layer]]
    input_shape: tuple[int, ...]


CASES = {
    "conv": Case(
        lambda: [
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Tanh()),
            nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh()),
            nn.Linear(5, CLASSES),
        ],
        lambda p: [
            twin.Layer(*p[0], twin.RELU, padding=1, pool=2),
            twin.Layer(*p[1], twin.TANH, stride=2, padding=1),
            twin.Layer(*p[2], twin.TANH),
            twin.Layer(*p[3]),
        ],
        (2, 6, 6),
    ),
    "linear": Case(
        lambda: [
            nn.Sequential(nn.Linear(4, 6), nn.Tanh()),
            nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
            nn.Linear(5, CLASSES),
        ],
        lambda p: [twin.Layer(*p[0], twin.TANH), twin.Layer(*p[1], twin.RELU), twin.Layer(*p[2])],
        (4,),
    ),
}


def layers_of(rule: localprop.Rule) -> list[nn.Module]:
    return [module for module in rule.net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def parameters_of(rule: localprop.Rule) -> list[tuple[Tensor, Tensor | None]]:
    return [
        (module.weight.detach().clone(), None if module.bias is None else module.bias.detach().clone())
        for module in layers_of(rule)
    ]


def drawn_magnitude(rule: localprop.Rule, step: int, number: int, weight: Tensor) -> Tensor:
    """Draw brSF's magnitude anew: uniform in [0, 1 / sqrt(fan_in)), from a generator of the step's and layer's own."""
    generator = torch.Generator().manual_seed(derive(rule.seed, "feedback", step, number))
    return torch.rand(weight.shape, generator=generator).double() / math.sqrt(weight[0].numel())


def backward_weights(method: str, rule: localprop.Rule, weights: list[Tensor], step: int) -> list[Tensor]:
    pairs = list(enumerate(zip(weights, rule.feedback, strict=True)))
    if method == "fa":
        return [f.matrix for _, (_, f) in pairs]
    if method == "usf":
        return [twin.usf_feedback(w, twin.initial_std(w, "kaiming")) for _, (w, _) in pairs]
    if method == "brsf":
        return [twin.sign_feedback(w, drawn_magnitude(rule, step, i, w)) for i, (w, _) in pairs]
    return [twin.sign_feedback(w, f.magnitude) for _, (w, f) in pairs]


def expected_gradients(
    method: str, case: Case, rule: localprop.Rule, x: Tensor, y: Tensor, step: int
) -> tuple[Tensor, twin.LayerGradients]:
    parameters = parameters_of(rule)
    layers = case.layers(parameters)
    if method in BACKWARD:
        matrices = backward_weights(method, rule, [weight for weight, _ in parameters], step)
        return twin.fa_gradients(layers, matrices, x, y)
    hidden = rule.feedback if isinstance(rule, DirectFeedback) else list(rule.objectives)[:-1]
    return twin.direct_gradients(layers, [part.matrix for part in hidden], x, y, method)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", [*PROVED, *VARIANTS])
def test_losses_gradients_and_updates_are_those_of_the_twin(method: str, case: Case):
    torch.manual_seed(1)
    net = localprop.LocalNetwork(case.modules()).double()
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(3, *case.input_shape, generator=generator, dtype=torch.float64), torch.tensor(y))
        for y in ([0, 1, 0], [2, 0, 1], [1, 1, 1])
    ]
    name, settings = VARIANTS.get(method, (method, {}))
    rule = localprop.methods.build(name, net, num_classes=CLASSES, example=batches[0][0], **settings).double()
    optimizers = {key: torch.optim.SGD(group, lr=LR) for key, group in rule.parameter_groups().items()}
    for number, (x, y) in enumerate(batches):
        loss, expected = expected_gradients(method, case, rule, x, y, number)
        before = parameters_of(rule)
        rule.begin(number)
        found: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        for step in rule.steps(x, y):
            if step.key[0] == len(net) - 1:
                torch.testing.assert_close(step.loss, loss, **EXACT)
            for module in net.blocks[step.key[0]].modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    found[module] = (module.weight.grad.clone(), None if module.bias is None else module.bias.grad)
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
        for module, (w_gradient, b_gradient), (weight, bias) in zip(layers_of(rule), expected, before, strict=True):
            torch.testing.assert_close(found[module][0], w_gradient, **EXACT)
            torch.testing.assert_close(module.weight.detach(), weight - LR * w_gradient, **EXACT)
            if bias is not None:
                torch.testing.assert_close(found[module][1], b_gradient, **EXACT)
                torch.testing.assert_close(module.bias.detach(), bias - LR * b_gradient, **EXACT)
            assert bool((w_gradient != 0).any())


def test_the_loss_of_random_targets_is_the_sum_whose_gradient_is_the_projected_target():
    h = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    matrix, y = torch.randn(CLASSES, 2, 4, dtype=torch.float64), torch.tensor([2, 0, 2])
    loss = feedback.target_projection_loss(h, y, matrix)
    expected = sum(float((h[n].detach() * matrix[y[n]]).sum()) for n in range(3)) / 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    delta = twin.direct_error(twin.signal_of(torch.zeros(3, CLASSES, dtype=torch.float64), y, "drtp"), matrix)
    torch.testing.assert_close(torch.autograd.grad(loss, h)[0], delta, **EXACT)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 1, 3)])
def test_a_linear_layer_of_any_leading_axes_goes_back_as_the_twin_does(leading: tuple[int, ...]):
    x, weight, bias, matrix = randn(*leading, 4), randn(5, 4), randn(5), randn(5, 4)
    out = feedback.linear(x, weight, bias, feedback=matrix)
    delta = torch.randn_like(out)
    expected = twin.linear_backward(x.detach(), delta, matrix.detach())
    found = torch.autograd.grad(out, [x, weight, bias, matrix], delta, allow_unused=True)
    torch.testing.assert_close(found[:3], tuple(expected), **EXACT)
    assert found[3] is None


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (1, 2)])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_convolution_goes_back_as_the_twin_does(axes: int, stride: int, padding: int):
    x, weight, bias = randn(2, 3, *[5] * axes), randn(4, 3, *[3] * axes), randn(4)
    matrix = randn(*weight.shape)
    out = feedback.convolution(x, weight, bias, stride, padding, feedback=matrix)
    delta = torch.randn_like(out)
    backward = twin.conv1d_backward if axes == 1 else twin.conv2d_backward
    expected = backward(x.detach(), delta, matrix.detach(), stride, padding)
    found = torch.autograd.grad(out, [x, weight, bias, matrix], delta, allow_unused=True)
    torch.testing.assert_close(found[:3], tuple(expected), **EXACT)
    assert found[3] is None


def test_the_angle_is_that_of_the_twin():
    torch.manual_seed(0)
    weight, matrix = torch.randn(4, 3), torch.randn(4, 3)
    logs = feedback.alignment([weight[:1], weight[1:]], [matrix[:1], matrix[1:]])
    assert float(logs["alignment_degrees"]) == pytest.approx(
        math.degrees(twin.alignment_angle(weight, matrix)), rel=1e-5
    )
    assert float(logs["norm_ratio"]) == pytest.approx(float(matrix.norm() / weight.norm()), rel=1e-5)
    assert float(feedback.alignment([weight], [weight])["alignment_degrees"]) == pytest.approx(0, abs=0.1)


def test_every_sign_symmetric_matrix_has_the_signs_and_the_size_of_the_weights():
    for method in ("usf", "brsf", "frsf"):
        rule = localprop.methods.build(
            method,
            localprop.LocalNetwork([nn.Linear(200, 300), nn.Linear(300, 3)]),
            num_classes=3,
            example=torch.zeros(1, 200),
            initialisation="xavier",
        )
        assert isinstance(rule, FeedbackAlignment)
        for weight, matrix in rule.backward_weights().items():
            assert torch.equal(matrix.sign(), weight.sign())
        first = next(iter(rule.backward_weights().values()))
        assert float(first.square().mean().sqrt()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)
