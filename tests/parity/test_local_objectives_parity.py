"""Similarity matching, label codes, contrast through a head and InfoPro, against twins: losses and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.models.parts import FlatBlock
from localprop.types import Normalisation
from tests.reference import information, similarity
from tests.reference.dictionary import cross_entropy
from tests.reference.layers import ConvLayer, LinearLayer, linear

EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLASSES, BUDGET, BETA = 3, 12, 0.3
MEAN, STD = 0.4, 0.25
Weights = dict[str, Tensor]
Twin = Callable[[Tensor, Tensor, Tensor, Weights, int], Tensor]
"""(h, y, image, the objective's parameters and buffers, block) -> loss."""


def modules() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh()),
        FlatBlock(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), feature_chunks=2),
        nn.Linear(6, CLASSES),
    ]


ACTIVATIONS: list[Callable[[Tensor, list[Tensor]], Tensor]] = [
    lambda x, p: F.conv2d(x, p[0], p[1], padding=1).clamp(min=0),
    lambda x, p: torch.tanh(F.conv2d(x, p[0], p[1], padding=1)),
    lambda x, p: torch.tanh(F.conv2d(x, p[0], p[1], padding=1)),
    lambda x, p: torch.tanh(x.flatten(1) @ p[0].T + p[1]),
    lambda x, p: x @ p[0].T + p[1],
]


def tail(block: int, h: Tensor) -> Tensor:
    return F.max_pool2d(h, 2) if block == 1 else h


def sim(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    return similarity.sim_loss(h, y, CLASSES, w["map.weight"])


def predsim(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    classifier = w["parts.prediction.classifier.weight"], w["parts.prediction.classifier.bias"]
    return similarity.predsim_loss(h, y, *classifier, w["parts.similarity.map.weight"], budget=BUDGET, beta=BETA)


def pred_bpf(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    decoder = w["weight"], w["bias"], w["feedback"]
    return similarity.pred_bpf_loss(h, y, w["code.codes"].T, *decoder, budget=BUDGET)


def sim_bpf(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    return similarity.sim_bpf_loss(h, y, w["code.codes"].T, budget=BUDGET)


def predsim_bpf(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    decoder = (w[f"parts.prediction.{name}"] for name in ("weight", "bias", "feedback"))
    codes = w["parts.prediction.code.codes"].T
    return similarity.predsim_bpf_loss(h, y, codes, *decoder, budget=BUDGET, beta=BETA)


def contrast(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    return information.contrast_loss(h, y, w["head.linear.weight"], w["head.linear.bias"], budget=BUDGET)


def reconstruction(h: Tensor, image: Tensor, w: Weights) -> Tensor:
    prefix = "parts.reconstruction.decoder."
    if h.dim() == 2:
        drawn = linear(h, w[prefix + "weight"], w[prefix + "bias"])
        return similarity.binary_cross_entropy_with_logits(drawn, image.flatten(1))
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    decoder = information.Decoder(*(w[prefix + name] for name in names))
    return information.reconstruction_loss(h, image, decoder)


def contrec(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
    head = {name.removeprefix("parts.contrast."): value for name, value in w.items()}
    return information.infopro_loss(reconstruction(h, image, w), contrast(h, y, image, head, block), (0.7, 1.0))


def infopro_head(h: Tensor, w: Weights) -> Tensor:
    """2c2f among maps of at most 5 channels: 3 -> 5 -> 5, 5 -> 5 -> 5 and 4 -> 5 -> 5."""
    prefix = "parts.task.head."
    strides = {3: (2, 1), 5: (1, 1), 4: (2, 1)}.get(h.shape[1], ()) if h.dim() == 4 else ()
    convolutions = [
        ConvLayer(
            *(w[f"{prefix}convolutions.{name}"] for name in (f"{i}.weight",)),
            None,
            w[f"{prefix}convolutions.{i + 1}.weight"],
            w[f"{prefix}convolutions.{i + 1}.bias"],
            stride=stride,
        )
        for i, stride in zip((0, 3), strides, strict=False)
    ]
    linears = [LinearLayer(w[f"{prefix}linear.{i}.weight"], w[f"{prefix}linear.{i}.bias"], relu=i == 0) for i in (0, 2)]
    return information.head(h, convolutions, linears)


def infopro(task: Callable[[Tensor, Tensor], Tensor]) -> Twin:
    def loss(h: Tensor, y: Tensor, image: Tensor, w: Weights, block: int) -> Tensor:
        weights = information.lambda_schedule((3.0, 0.2), (0.0, 1.0), 5)[block]
        scored = task(infopro_head(h, w), y)
        return (
            weights[1] * scored
            if not weights[0]
            else information.infopro_loss(reconstruction(h, image, w), scored, weights)
        )

    return loss


BUDGETED = {"feature_budget": BUDGET}
SCHEDULE = {"head": "2c2f", "reconstruction_first": 3.0, "task_first": 0.2, "reconstruction_last": 0, "task_last": 1}
TWINS: dict[str, tuple[Twin, dict[str, object]]] = {
    "sim": (sim, {}),
    "predsim": (predsim, {**BUDGETED, "beta": BETA}),
    "pred-bpf": (pred_bpf, {**BUDGETED, "code_width": 7}),
    "sim-bpf": (sim_bpf, {**BUDGETED, "code_width": 7}),
    "predsim-bpf": (predsim_bpf, {**BUDGETED, "code_width": 7, "beta": BETA}),
    "contrast": (contrast, {**BUDGETED, "embedding_width": 5}),
    "contrec": (contrec, {**BUDGETED, "embedding_width": 5, "reconstruction_weight": 0.7}),
    "infopro-softmax": (infopro(information.softmax_task), SCHEDULE),
    "infopro-contrast": (infopro(information.contrast_task), SCHEDULE),
}
PROVED = list(TWINS)
SCORED = [name for name in PROVED if "scored" in localprop.methods.get(name).settings()]


@pytest.mark.parametrize(
    ("method", "scored"), [*((name, "output") for name in PROVED), *((name, "activation") for name in SCORED)]
)
def test_losses_and_gradients_are_those_of_the_twin(method: str, scored: str):
    torch.manual_seed(3)
    twin, settings = TWINS[method]
    settings = {**settings, "scored": scored} if method in SCORED else settings
    image, y = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1])
    x = (image - MEAN) / STD
    net = localprop.LocalNetwork(modules()).double()
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=x, **settings).double()
    rule.normalisation = Normalisation((MEAN,), (STD,))
    for parameter in rule.parameters():  # also what starts at zero
        nn.init.normal_(parameter, std=0.4)

    h = x
    for step, block, objective in zip(rule.steps(x, y), net.blocks, rule.objectives, strict=True):
        index = step.key[0]
        theta = [p.detach().clone().requires_grad_() for p in block.parameters()]
        named = {name: p.detach().clone().requires_grad_() for name, p in objective.named_parameters()}
        activation = ACTIVATIONS[index](h, theta)
        output = tail(index, activation)
        if index == len(net) - 1:
            loss = cross_entropy(output, y)
        else:
            read = activation if scored == "activation" else output
            loss = twin(read, y, image, {**named, **dict(objective.named_buffers())}, index)
        expected = torch.autograd.grad(loss, [*theta, *named.values()])
        torch.testing.assert_close(step.loss, loss.detach(), **EXACT)
        actual = [p.grad for p in (*block.parameters(), *objective.parameters())]
        torch.testing.assert_close(actual, list(expected), **EXACT)
        assert any(bool(gradient.any()) for gradient in expected[: len(theta)])
        torch.testing.assert_close(step.output, output.detach(), **EXACT)
        h = output.detach()
