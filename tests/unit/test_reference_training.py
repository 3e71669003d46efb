"""The naive twins' training steps, against torch's optimisers and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import CLOSE, close, randn, tensor
from tests.reference import dictionary, training

Z = 3


def pooled(embeddings: Tensor, width: int) -> Tensor:
    return F.adaptive_avg_pool1d(embeddings[None], width)[0]


LR = 0.1
Y = torch.tensor([0, 1, 2, 0])
X = randn(4, 5, seed=10)


def hidden(x: Tensor, theta: list[Tensor]) -> Tensor:
    return torch.relu(x @ theta[0].T + theta[1])


def output(x: Tensor, theta: list[Tensor]) -> Tensor:
    return x @ theta[0].T


def network(*widths: int) -> tuple[list[training.Block], training.Groups]:
    """Hidden layers of the given widths on 5 inputs, and a linear layer of Z outputs."""
    sizes = [5, *widths]
    params = [
        [randn(sizes[i + 1], sizes[i], seed=20 + i), randn(sizes[i + 1], seed=30 + i)] for i in range(len(widths))
    ]
    return [hidden] * len(widths) + [output], [*params, [randn(Z, sizes[-1], seed=40)]]


def assert_same_step(a: training.Step, b: training.Step) -> None:
    torch.testing.assert_close(a.losses, b.losses, **CLOSE)
    torch.testing.assert_close(a.gradients, b.gradients, **CLOSE)
    torch.testing.assert_close(a.params, b.params, **CLOSE)
    torch.testing.assert_close(a.dictionary, b.dictionary, **CLOSE)


def test_backprop_step_is_a_torch_sgd_step() -> None:
    blocks, params = network(6, 4)
    step = training.backprop_step(blocks, params, X, Y, LR)

    modules = torch.nn.Sequential(
        torch.nn.Linear(5, 6),
        torch.nn.ReLU(),
        torch.nn.Linear(6, 4),
        torch.nn.ReLU(),
        torch.nn.Linear(4, Z, False),
    ).double()
    flat = [theta for group in params for theta in group]
    with torch.no_grad():
        for parameter, value in zip(modules.parameters(), flat, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.SGD(modules.parameters(), lr=LR)
    loss = F.cross_entropy(modules(X), Y)
    loss.backward()
    optimizer.step()
    assert step.losses[:2] == [None, None]
    close(step.losses[2], loss.detach())
    for actual, parameter in zip([p for g in step.params for p in g], modules.parameters(), strict=True):
        close(actual, parameter.detach())


def test_dcl_step_by_hand() -> None:
    """A single scalar weight, features x w, embeddings +1 and -1: every number can be worked out."""
    blocks: list[training.Block] = [lambda x, theta: x * theta[0], lambda x, theta: x @ theta[0].T]
    params = [[tensor(0.5)], [tensor([[0.0], [0.0]])]]
    x, y, t = tensor([[2.0]]), torch.tensor([0]), tensor([[1.0], [-1.0]])
    step = training.dcl_step(blocks, params, t, x, y, lr=1.0)
    miss = 1 / (1 + math.e**2)  # h = 1, logits 1 and -1; probability of the wrong class
    close(step.losses[0], tensor(math.log(1 + math.e**-2)))
    close(step.gradients[0][0], tensor(-2 * miss * 2))  # dL/dh = -2 miss, dh/dw = x = 2
    close(step.params[0][0], tensor(0.5 + 4 * miss))
    assert isinstance(step.dictionary, Tensor)
    close(step.dictionary, tensor([[1 + miss], [-1 - miss]]))
    close(step.losses[1], tensor(math.log(2)))
    close(step.params[1][0], tensor([[0.5], [-0.5]]))  # sees h = 1, from before the update


def test_dcl_moves_the_dictionary_layer_by_layer() -> None:
    blocks, params = network(6, 4)
    t = randn(Z, 6, seed=50)
    first = hidden(X, params[0])
    second = hidden(first, params[1])
    t0 = t.clone().requires_grad_()
    loss0 = F.cross_entropy(first @ t0.T, Y)
    t1 = (t0 - LR * torch.autograd.grad(loss0, t0)[0]).detach().requires_grad_()
    loss1 = F.cross_entropy(second @ pooled(t1, 4).T, Y)
    t2 = (t1 - LR * torch.autograd.grad(loss1, t1)[0]).detach()

    step = training.dcl_step(blocks, params, t, X, Y, LR)
    close(step.losses[0], loss0.detach())
    close(step.losses[1], loss1.detach())
    assert isinstance(step.dictionary, Tensor)
    close(step.dictionary, t2)


def test_dcl_averaged_takes_the_mean_gradient_at_the_first_dictionary() -> None:
    blocks, params = network(6, 4)
    t = randn(Z, 6, seed=50).requires_grad_()
    first = hidden(X, params[0])
    second = hidden(first, params[1])
    total = F.cross_entropy(first @ t.T, Y) + F.cross_entropy(second @ pooled(t, 4).T, Y)
    expected = (t - LR * torch.autograd.grad(total, t)[0] / 2).detach()
    step = training.dcl_averaged_step(blocks, params, t.detach(), X, Y, LR)
    assert isinstance(step.dictionary, Tensor)
    close(step.dictionary, expected)


def test_dcl_last_lets_only_the_last_dictionary_layer_move_it() -> None:
    blocks, params = network(6, 4)
    t = randn(Z, 6, seed=50).requires_grad_()
    second = hidden(hidden(X, params[0]), params[1])
    [gradient] = torch.autograd.grad(F.cross_entropy(second @ pooled(t, 4).T, Y), t)
    step = training.dcl_last_step(blocks, params, t.detach(), X, Y, LR)
    assert isinstance(step.dictionary, Tensor)
    close(step.dictionary, (t - LR * gradient).detach())
    static = training.dcl_static_step(blocks, params, t.detach(), X, Y, LR)
    torch.testing.assert_close(step.losses, static.losses, **CLOSE)
    torch.testing.assert_close(step.params, static.params, **CLOSE)


def test_static_dictionary_stays_bit_identical() -> None:
    blocks, params = network(6, 4)
    t = randn(Z, 6, seed=50)
    step = training.dcl_static_step(blocks, params, t, X, Y, LR)
    assert isinstance(step.dictionary, Tensor)
    assert torch.equal(step.dictionary, t)
    for old, new in zip(params, step.params, strict=True):
        assert not torch.equal(old[0], new[0])


def test_variants_agree_where_they_must() -> None:
    t = randn(Z, 6, seed=50)
    blocks, params = network(6)
    one = training.dcl_step(blocks, params, t, X, Y, LR)
    assert_same_step(training.dcl_averaged_step(blocks, params, t, X, Y, LR), one)
    assert_same_step(training.dcl_last_step(blocks, params, t, X, Y, LR), one)
    layerwise = training.dcl_layerwise_step(blocks, params, [t], X, Y, LR)
    assert_same_step(layerwise._replace(dictionary=layerwise.dictionary[0]), one)

    blocks, params = network(6, 4)
    sequential = training.dcl_step(blocks, params, t, X, Y, LR)
    averaged = training.dcl_averaged_step(blocks, params, t, X, Y, LR)
    assert not torch.allclose(sequential.losses[1], averaged.losses[1])
    assert not torch.allclose(sequential.dictionary, averaged.dictionary)


def test_layerwise_dictionaries_are_bias_free_heads() -> None:
    blocks, params = network(6, 4)
    heads = [randn(Z, 6, seed=50), randn(Z, 4, seed=51)]
    layerwise = training.dcl_layerwise_step(blocks, params, heads, X, Y, LR)
    zero = torch.zeros(Z, dtype=torch.float64)
    pred = training.pred_step(blocks, params, [[head, zero] for head in heads], X, Y, LR, budget=100)
    torch.testing.assert_close(pred.losses, layerwise.losses, **CLOSE)
    torch.testing.assert_close(pred.params, layerwise.params, **CLOSE)
    torch.testing.assert_close([head[0] for head in pred.dictionary], layerwise.dictionary, **CLOSE)
    assert all(head[1].abs().max() > 0 for head in pred.dictionary)


def test_chunks_and_loss_of_the_callers_choice() -> None:
    blocks, params = network(8, 4)
    t = randn(Z, 4, seed=50)
    first = hidden(X, params[0])
    features = F.normalize(first.reshape(4, 2, 4).mean(1))
    expected = F.cross_entropy(features @ F.normalize(t).T / 0.07, Y)

    def cosine(h: Tensor, embeddings: Tensor, y: Tensor, chunks: int) -> Tensor:
        return dictionary.dictionary_loss(h, embeddings, y, similarity="cosine", temperature=0.07, chunks=chunks)

    for step in (
        training.dcl_step,
        training.dcl_static_step,
        training.dcl_averaged_step,
        training.dcl_last_step,
    ):
        close(step(blocks, params, t, X, Y, LR, chunks=[2, 1], loss_fn=cosine).losses[0], expected)


def test_feat_step() -> None:
    blocks, params = network(6, 4)
    theta = [p.clone().requires_grad_() for p in params[0]]
    a = F.normalize(hidden(X, theta))
    similarity = (a @ a.T / 0.07).fill_diagonal_(-torch.inf)
    # Samples 0 and 3 are the only positives of each other.
    log_probability = similarity.log_softmax(1)
    loss = -(log_probability[0, 3] + log_probability[3, 0]) / 4
    expected = torch.autograd.grad(loss, theta)
    step = training.feat_step(blocks, params, X, Y, LR)
    close(step.losses[0], loss.detach())
    for gradient, wanted in zip(step.gradients[0], expected, strict=True):
        close(gradient, wanted)
    assert step.dictionary is None


LOCAL_STEPS = {
    "dcl": lambda b, p: training.dcl_step(b, p, randn(Z, 6, seed=50), X, Y, LR),
    "static": lambda b, p: training.dcl_static_step(b, p, randn(Z, 6, seed=50), X, Y, LR),
    "averaged": lambda b, p: training.dcl_averaged_step(b, p, randn(Z, 6, seed=50), X, Y, LR),
    "last": lambda b, p: training.dcl_last_step(b, p, randn(Z, 6, seed=50), X, Y, LR),
    "layerwise": lambda b, p: training.dcl_layerwise_step(b, p, [randn(Z, 6), randn(Z, 4)], X, Y, LR),
    "pred": lambda b, p: training.pred_step(
        b, p, [[randn(Z, 6), randn(Z)], [randn(Z, 4), randn(Z)]], X, Y, LR, budget=100
    ),
    "feat": lambda b, p: training.feat_step(b, p, X, Y, LR),
}


@pytest.mark.parametrize("name", LOCAL_STEPS)
def test_local_steps_keep_to_their_block_and_leave_the_arguments_alone(name: str) -> None:
    blocks, params = network(6, 4)
    before = [[p.clone() for p in group] for group in params]
    step = LOCAL_STEPS[name](blocks, params)
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    assert len(step.losses) == len(step.gradients) == len(step.params) == 3

    # A block in front is blind to what stands behind it, and the last block learns as in backprop.
    changed = [params[0], [-p for p in params[1]], params[2]]
    torch.testing.assert_close(LOCAL_STEPS[name](blocks, changed).params[0], step.params[0], **CLOSE)
    torch.testing.assert_close(step.params[2], training.backprop_step(blocks, params, X, Y, LR).params[2], **CLOSE)
