"""Every method's training step, against the twin that writes it out: losses, gradients and updates over three steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.models.parts import FlatBlock
from tests.reference import dictionary as twin_dictionary
from tests.reference import training as twin

EXACT = {"rtol": 1e-9, "atol": 1e-12}
LR = 0.05
STEPS = 3
CLASSES = 3
BUDGET = 12


@dataclass(frozen=True)
class Case:
    """One network, written twice.

    Attributes:
        modules: Builds the library's blocks.
        functions: The twin's blocks, each h = block(x, parameters).
        input_shape: One sample.
        chunks: K of every hidden block.
    """

    modules: Callable[[], list[nn.Module]]
    functions: list[twin.Block]
    input_shape: tuple[int, ...]
    chunks: tuple[int, ...]


def conv_modules() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()),
        FlatBlock(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), feature_chunks=2),
        nn.Linear(6, CLASSES),
    ]


def linear_modules() -> list[nn.Module]:
    return [nn.Linear(4, 6), nn.Linear(6, 5, bias=False), nn.Linear(5, CLASSES)]


CASES = {
    "conv": Case(
        conv_modules,
        [
            lambda x, p: F.conv2d(x, p[0], p[1], padding=1).clamp(min=0),
            lambda x, p: F.conv2d(x, p[0], p[1], stride=2, padding=1).clamp(min=0),
            lambda x, p: torch.tanh(x.flatten(1) @ p[0].T + p[1]),
            lambda x, p: x @ p[0].T + p[1],
        ],
        (1, 4, 4),
        (1, 1, 2),
    ),
    "linear": Case(
        linear_modules,
        [lambda x, p: x @ p[0].T + p[1], lambda x, p: x @ p[0].T, lambda x, p: x @ p[0].T + p[1]],
        (4,),
        (1, 1),
    ),
}


def cosine_loss(h: Tensor, embeddings: Tensor, y: Tensor, chunks: int) -> Tensor:
    return twin_dictionary.dictionary_loss(h, embeddings, y, similarity="cosine", temperature=0.07, chunks=chunks)


TWIN_STEPS = {
    "dcl": twin.dcl_step,
    "dcl-s": twin.dcl_static_step,
    "dcl-averaged": twin.dcl_averaged_step,
    "dcl-o": twin.dcl_last_step,
    "dcl-ld": twin.dcl_layerwise_step,
}

PROVED = [*TWIN_STEPS, "bp", "pred", "feat", "dcl-cosine"]


def twin_step(method: str, case: Case, params: twin.Groups, auxiliary: object, x: Tensor, y: Tensor) -> twin.Step:
    blocks = case.functions
    if method == "bp":
        return twin.backprop_step(blocks, params, x, y, LR)
    if method == "pred":
        return twin.pred_step(blocks, params, auxiliary, x, y, LR, budget=BUDGET)
    if method == "feat":
        return twin.feat_step(blocks, params, x, y, LR, chunks=case.chunks)
    if method == "dcl-cosine":
        return twin.dcl_step(blocks, params, auxiliary, x, y, LR, chunks=case.chunks, loss_fn=cosine_loss)
    return TWIN_STEPS[method](blocks, params, auxiliary, x, y, LR, chunks=case.chunks)


def auxiliary_of(method: str, rule: localprop.Rule) -> object:
    """Copy what is trained beside the network, in the twin's form."""
    if method in ("bp", "feat"):
        return None
    hidden = list(rule.objectives)[:-1]
    if method == "pred":
        return [[o.classifier.weight.detach().clone(), o.classifier.bias.detach().clone()] for o in hidden]
    dictionaries = [o.dictionary.embeddings.detach().clone() for o in hidden]
    return dictionaries if method == "dcl-ld" else dictionaries[0]


def parameters_of(rule: localprop.Rule) -> twin.Groups:
    return [[p.detach().clone() for p in block.parameters()] for block in rule.net.blocks]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", PROVED)
def test_losses_gradients_and_updates_are_those_of_the_twin(method: str, case: Case):
    torch.manual_seed(1)
    net = localprop.LocalNetwork(case.modules()).double()
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(4, *case.input_shape, generator=generator, dtype=torch.float64), torch.tensor(y))
        for y in ([0, 1, 0, 1], [2, 0, 1, 2], [1, 1, 1, 0])
    ]
    settings = {"feature_budget": BUDGET} if method == "pred" else {}
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=batches[0][0], **settings).double()
    params, auxiliary = parameters_of(rule), auxiliary_of(method, rule)
    optimizers = {key: torch.optim.SGD(group, lr=LR) for key, group in rule.parameter_groups().items()}

    for number, (x, y) in enumerate(batches):
        expected = twin_step(method, case, params, auxiliary, x, y)
        params, auxiliary = expected.params, expected.dictionary
        losses: list[Tensor | None] = [None] * len(net)
        gradients: list[list[Tensor]] = [[] for _ in range(len(net))]
        rule.begin(number)
        for step in rule.steps(x, y):
            index = len(net) - 1 if step.key == (None, "network") else step.key[0]
            if index is not None:
                losses[index] = step.loss
            for i, block in enumerate(net.blocks):
                if i == index or step.key == (None, "network"):
                    gradients[i] = [p.grad.clone() for p in block.parameters()]
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)

        torch.testing.assert_close(losses, expected.losses, **EXACT)
        torch.testing.assert_close(gradients, expected.gradients, **EXACT)
        torch.testing.assert_close(parameters_of(rule), params, **EXACT)
        if auxiliary is not None:
            torch.testing.assert_close(auxiliary_of(method, rule), auxiliary, **EXACT)


def test_the_dictionary_moves_except_in_dcl_s():
    """The parity above would also hold of a step that does nothing."""
    for method in TWIN_STEPS:
        net = localprop.LocalNetwork(linear_modules()).double()
        x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        rule = localprop.methods.build(method, net, num_classes=CLASSES, example=x).double()
        before = auxiliary_of(method, rule)
        optimizers = {key: torch.optim.SGD(group, lr=LR) for key, group in rule.parameter_groups().items()}
        for step in rule.steps(x, y):
            optimizers[step.key].step()
            optimizers[step.key].zero_grad(set_to_none=True)
        after = auxiliary_of(method, rule)
        pairs = zip(before, after, strict=True) if method == "dcl-ld" else [(before, after)]
        assert all(torch.equal(a, b) == (method == "dcl-s") for a, b in pairs), method
