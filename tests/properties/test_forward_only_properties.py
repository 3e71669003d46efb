"""What holds of every input of the forward-only methods."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import localprop
from localprop.functional.goodness import (
    goodness,
    group_goodness,
    likely_wrong_labels,
    normalise_activity,
    wrong_labels,
)
from localprop.functional.hebbian import competition
from localprop.rules import forward_gradient
from localprop.train.executor import LocalExecutor

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(seeds, st.integers(2, 12), st.sampled_from([1e-3, 1.0, 1e4]))
def test_a_negative_never_carries_the_true_label(seed: int, num_classes: int, size: float):
    target = torch.arange(5 * num_classes) % num_classes
    generator = torch.Generator().manual_seed(seed)
    certain = size * torch.nn.functional.one_hot(target, num_classes).double()
    for drawn in (
        wrong_labels(target, num_classes, generator),
        likely_wrong_labels(size * randn(seed, len(target), num_classes), target, generator),
        likely_wrong_labels(certain, target, generator),
    ):
        assert drawn.dtype == torch.int64
        assert bool(((drawn >= 0) & (drawn < num_classes) & (drawn != target)).all())


def test_negatives_are_drawn_as_often_as_they_shall():
    target, logits = torch.zeros(20_000, dtype=torch.int64), torch.tensor([5.0, 0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    uniform = wrong_labels(target, 4, generator).bincount(minlength=4) / len(target)
    likely = likely_wrong_labels(logits.expand(len(target), -1), target, generator).bincount(minlength=4) / len(target)
    torch.testing.assert_close(uniform, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), rtol=0, atol=0.02)
    torch.testing.assert_close(likely, torch.cat([torch.zeros(1), logits[1:].softmax(0)]), rtol=0, atol=0.02)


@few
@given(seeds, st.floats(1e-2, 1e3), st.sampled_from(["rms", "l2"]))
def test_a_border_lets_nothing_through_but_directions(seed: int, factor: float, border: str):
    h = randn(seed, 3, 4, 2, 2)
    passed = normalise_activity(h, border)
    torch.testing.assert_close(normalise_activity(factor * h, border), passed)
    torch.testing.assert_close(goodness(passed, "mean" if border == "rms" else "sum"), torch.ones(3).double())
    assert torch.equal(normalise_activity(torch.zeros(2, 3), border), torch.zeros(2, 3))


@few
@given(seeds, st.integers(2, 5), st.integers(1, 3))
def test_groups_share_out_the_mean_goodness(seed: int, num_groups: int, channels: int):
    h = randn(seed, 3, num_groups * channels, 2, 2)
    torch.testing.assert_close(group_goodness(h, num_groups).mean(1), goodness(h, "mean"))


@few
@given(seeds, st.floats(0.05, 5))
def test_competition_has_one_winner_and_shares_one(seed: int, temperature: float):
    u = randn(seed, 4, 6, 3)
    y = competition(u, temperature, 1)
    torch.testing.assert_close(y.abs().sum(1), torch.ones(4, 3).double())
    assert bool(((y > 0).sum(1) <= 1).all())
    assert torch.equal(y.argmax(1), u.argmax(1))


@pytest.mark.parametrize("perturb", ["activities", "weights"])
def test_the_mean_forward_gradient_is_the_gradient(perturb: str, monkeypatch: pytest.MonkeyPatch):
    """Over the directions sqrt(D) e_i, which have the covariance of the random ones, the mean is exact."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh()), nn.Linear(4, 3)]
    net = localprop.LocalNetwork(blocks).double()
    x, y = randn(1, 2, 3), torch.tensor([0, 2])
    settings = {"num_classes": 3, "example": x}
    rule = localprop.methods.build("forward-gradient", net, **settings, perturb=perturb).double()
    trained = list(blocks[0].parameters())
    size = 4 if perturb == "activities" else sum(p.numel() for p in trained)
    place = 0

    def basis(like: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal place
        flat = torch.zeros(like.numel(), dtype=like.dtype).view(len(x) if perturb == "activities" else 1, -1)
        if 0 <= place < flat.shape[1]:
            flat[:, place] = size**0.5
        place -= flat.shape[1]
        return flat.view(like.shape)

    monkeypatch.setattr(forward_gradient, "_direction", basis)
    total = [torch.zeros_like(p) for p in trained]
    for direction in range(size):
        place = direction
        steps = rule.steps(x, y)
        next(steps)
        total = [t + p.grad / size for t, p in zip(total, trained, strict=True)]
        steps.close()
    loss = rule.objectives[0](blocks[0](x), localprop.LocalBatch(y, x)).loss
    torch.testing.assert_close(total, list(torch.autograd.grad(loss, trained)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_pff_learns_to_tell_prototypes_apart_in_every_block(model: str):
    torch.manual_seed(0)
    generator, y = torch.Generator().manual_seed(0), torch.arange(32) % 4
    x = torch.randn(4, 1, 8, 8, generator=generator)[y] + 0.3 * torch.randn(32, 1, 8, 8, generator=generator)
    net = localprop.models.get(model)((1, 8, 8), 4, width=0.125)
    rule = localprop.methods.build("pff", net, num_classes=4, example=x)
    executor = LocalExecutor(rule, lambda group: torch.optim.Adam(group, lr=0.001))
    for number in range(20):
        executor.step(number, x, y)
    rule.eval()
    assert all(bool((logits.argmax(1) == y).float().mean() > 0.9) for logits in rule.exits(x))


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("ff", {"label": "stamp"}, "label: must be 'overlay' or 'pattern', got 'stamp'"),
        ("ff", {"threshold": 0.0}, "threshold: must be positive and finite, got 0.0"),
        ("ff", {"goodness": "max"}, "goodness: must be 'sum' or 'mean', got 'max'"),
        ("ff", {"negatives": "easy"}, "negatives: must be 'uniform' or 'hard', got 'easy'"),
        ("ff", {"peer_weight": -1.0}, "peer_weight: must be at least 0 and finite, got -1.0"),
        ("ff", {"strength": 0.0}, "strength: must be positive and finite, got 0.0"),
        ("ff", {"label": "overlay"}, "label: 9 classes need as many pixels, the inputs have 8; use label 'pattern'"),
        ("symba", {"sharpness": 0.0}, "sharpness: must be positive and finite, got 0.0"),
        ("cwcomp", {}, "cwcomp: needs a channel for each of the 9 classes, block '0' has 6; use a wider network"),
        ("pff", {"rounds": 0}, "rounds: must be at least 1, got 0"),
        ("pff", {"threshold": 0.0}, "threshold: must be positive and finite, got 0.0"),
        ("pff", {"noise": -0.1}, "noise: must be at least 0 and finite, got -0.1"),
        ("pff", {"dampening": 1.0}, r"dampening: must be in \[0, 1\), got 1.0"),
        ("pff", {"goodness": "max"}, "goodness: must be 'sum' or 'mean', got 'max'"),
        ("softhebb", {"temperature": 0.0}, "temperature: must be positive and finite, got 0.0"),
        ("softhebb", {"block": nn.LayerNorm(8)}, "softhebb: block '0' has no nn.Linear, nn.Conv1d or nn.Conv2d"),
        ("forward-gradient", {"perturb": "logits"}, "perturb: must be 'activities' or 'weights', got 'logits'"),
        ("pepita", {"strength": 0.0}, "strength: must be positive and finite, got 0.0"),
        ("pepita", {"block": nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6))}, "pepita: .* block '0' has 2"),
        ("pepita", {"block": nn.Sequential(nn.Linear(8, 12), nn.GLU())}, "pepita: .* put the pooling at the end"),
    ],
)
def test_what_a_method_cannot_do_is_refused_with_the_reason(method: str, values: dict, message: str):
    values = dict(values)
    first = values.pop("block", nn.Linear(8, 6))
    width = first(torch.zeros(2, 8)).shape[1]
    net = localprop.LocalNetwork([first, nn.Linear(width, 9)])
    with pytest.raises(ValueError, match=message):
        localprop.methods.build(method, net, num_classes=9, example=torch.zeros(2, 8), **values)
