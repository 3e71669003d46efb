"""Self-supervised losses and their training steps, against twins in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional.info_nce import nt_xent_loss, row_info_nce_loss
from localprop.functional.views import grid_patches, grid_shape
from localprop.objectives import RowPrediction
from tests.by_hand import randn
from tests.reference import self_supervised as twin
from tests.reference.dictionary import cross_entropy
from tests.reference.layers import LinearLayer
from tests.reference.prediction import pooled_features, pred_logits

PROVED = ("simclr-local", "infomax", "cpc")
EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLASSES = 3


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_loss(temperature: float):
    projections = randn(6, 4).requires_grad_()
    loss, expected = nt_xent_loss(projections, temperature), twin.nt_xent(projections[:3], projections[3:], temperature)
    close(loss, expected)
    close(torch.autograd.grad(loss, projections), torch.autograd.grad(expected, projections))


@pytest.mark.parametrize("skipped", [0, 1])
def test_row_info_nce_loss(skipped: int):
    samples, rows, columns, channels, steps, count = 2, 4, 2, 3, 2, 5
    codes, weights = randn(samples, rows, columns, channels).requires_grad_(), randn(steps, channels, channels, seed=1)
    weights.requires_grad_()
    places = torch.randint(
        samples * rows * columns,
        (steps, samples, rows, columns, count),
        generator=torch.Generator().manual_seed(2),
    )
    loss = row_info_nce_loss(codes, weights, places, skipped)
    expected = twin_row_loss(codes, weights, places, skipped)
    close(loss, expected)
    close(torch.autograd.grad(loss, [codes, weights]), torch.autograd.grad(expected, [codes, weights]))


def twin_row_loss(codes: Tensor, weights: Tensor, places: Tensor, skipped: int) -> Tensor:
    _, rows, columns, _ = codes.shape
    triples = torch.stack([places // (rows * columns), places // columns % rows, places % columns], -1)
    negatives = [triples[k, :, : rows - (k + 1 + skipped)] for k in range(len(weights))]
    z = codes.permute(0, 3, 1, 2)
    return twin.patch_prediction_loss(z, z, list(weights), negatives, skip=skipped)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 2), (3, 2), (5, 1)])
def test_patches_are_cut_row_by_row(size: int, stride: int):
    images = randn(2, 3, 5, 6)
    expected = twin.image_patches(images, size, stride)
    assert grid_shape(5, 6, size, stride) == expected.shape[1:3]
    assert torch.equal(grid_patches(images, size, stride), expected.flatten(0, 2))


def network() -> localprop.LocalNetwork:
    torch.manual_seed(0)
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh()),
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)),
        ]
    )


def build(method: str, **settings: object) -> localprop.Rule:
    net = network()
    example = torch.zeros(2, 1, 5, 5)
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=example, **settings).double()
    with torch.no_grad():
        for number, parameter in enumerate(rule.objectives.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=number + 10))
    return rule


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters))


def test_the_steps_of_local_simclr():
    rule = build("simclr-local", temperature=0.3, projection=5)
    views, y = (randn(4, 1, 5, 5), randn(4, 1, 5, 5, seed=1)), torch.tensor([0, 1, 2, 0])
    labels, h = torch.cat([y, y]), torch.cat(views)
    for index, step in enumerate(rule.steps(views, y)):
        group = rule.parameter_groups()[step.key]
        objective = rule.objectives[index]
        h = rule.net.blocks[index](h.detach())
        if index == 2:
            expected = cross_entropy(h, labels)
        else:
            layers = [
                LinearLayer(objective.head[0].weight, objective.head[0].bias, None, None, True),
                LinearLayer(objective.head[2].weight, objective.head[2].bias, None, None, False),
            ]
            probe = objective.probe.classifier
            contrast = twin.nt_xent(twin.projection_head(h[:4], layers), twin.projection_head(h[4:], layers), 0.3)
            read = cross_entropy(pred_logits(h.detach(), probe.weight, probe.bias, 2048), labels)
            close(step.logs["self_supervised"], contrast.detach())
            close(step.logs["probe"], read.detach())
            expected = contrast + read
        close(step.loss, expected.detach())
        close([p.grad for p in group], gradients(expected, group))
        rule.clear_gradients()


def expected_patch_loss(rule: localprop.Rule, index: int, h: Tensor, labels: Tensor, drawn: Tensor | None) -> Tensor:
    objective = rule.objectives[index]
    if index == len(rule.net) - 1:
        return cross_entropy(h, labels)
    probe = objective.probe if isinstance(objective, RowPrediction) else objective
    read = cross_entropy(pred_logits(h.detach(), probe.classifier.weight, probe.classifier.bias, 2048), labels)
    if not isinstance(objective, RowPrediction):
        return read
    codes = pooled_features(h, h.shape[1]).reshape(-1, *objective.grid, h.shape[1])
    return twin_row_loss(codes, objective.predictors, drawn, objective.skipped_rows) + read


@pytest.mark.parametrize("method", ["infomax", "cpc"])
def test_the_steps_on_patches(method: str, monkeypatch: pytest.MonkeyPatch):
    rule = build(method, patch=2, stride=1, predicted_rows=2, skipped_rows=1, negatives=3)
    x, y = randn(2, 1, 5, 5), torch.tensor([2, 1])
    drawn = torch.randint(32, (2, 2, 4, 4, 3), generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(torch, "randint", lambda high, shape: drawn if tuple(shape) == drawn.shape else None)
    labels = y.repeat_interleave(16)
    h = twin.image_patches(x, 2, 1).flatten(0, 2)
    losses = []
    for index, block in enumerate(rule.net.blocks):
        h = block(h if method == "cpc" and index < 2 else h.detach())
        losses.append(expected_patch_loss(rule, index, h, labels, drawn))
    wanted = [sum(losses)] if method == "cpc" else losses
    for step, expected in zip(rule.steps(x, y), wanted, strict=True):
        group = rule.parameter_groups()[step.key]
        close(step.loss, expected.detach())
        close([p.grad for p in group], gradients(expected, group))
        rule.clear_gradients()
    close(rule.predict(x), torch.stack([h[:16].mean(0), h[16:].mean(0)]).detach())
