"""Layerwise training, the cascade and patch dictionaries against their twins."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional.cascade import sparsemax
from localprop.functional.clustering import k_means, nearest_centres, spread_centres
from localprop.models.patches import PatchCoding
from localprop.rules.patches import PatchDictionaries
from localprop.seed import derive
from tests.parity.test_training_parity import CASES, CLASSES, EXACT, LR, parameters_of
from tests.reference import cascaded, clustering, greedy, layers
from tests.reference import patches as twin_patches
from tests.reference.dictionary import cross_entropy

PROVED = ("layerwise", "cafo-ce", "cafo-sparsemax", "cafo-mse", "cafo-dfa", "patches", "clusters")
CASE = CASES["conv"]


def batches(shape: tuple[int, ...] = CASE.input_shape) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(4, *shape, generator=generator, dtype=torch.float64), torch.tensor(y))
        for y in ([0, 1, 0, 1], [2, 0, 1, 2], [1, 1, 2, 0])
    ]


def build(method: str, net: localprop.LocalNetwork | None = None, **settings: object) -> localprop.Rule:
    torch.manual_seed(1)
    net = localprop.LocalNetwork(CASE.modules()) if net is None else net
    example = torch.zeros(1, *CASE.input_shape, dtype=torch.float64)
    rule = localprop.methods.build(method, net.double(), num_classes=CLASSES, example=example, **settings).double()
    with torch.no_grad():
        for objective in rule.objectives:
            for parameter in objective.parameters():  # the predictors of a cascade start at ones
                parameter.copy_(torch.randn_like(parameter) / 4)
    return rule


def gradients_of(rule: localprop.Rule, x: Tensor, y: Tensor, **settings: object) -> dict[int, tuple]:
    """Return loss, logits, gradients of the block and of its objective, by block."""
    found = {}
    for step in rule.steps(x, y, **settings):
        index = step.key[0]
        modules = rule.net.blocks[index], rule.objectives[index]
        grads = [[p.grad.clone() for p in module.parameters() if p.requires_grad] for module in modules]
        found[index] = (step.loss, step.logits, *grads)
    return found


def sgd(rule: localprop.Rule) -> None:
    with torch.no_grad():
        for parameter in rule.parameters():
            if parameter.grad is not None:
                parameter -= LR * parameter.grad
    rule.clear_gradients()


def head_loss(depth: int) -> greedy.LocalLoss:
    def loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
        inner, classifier = phi[:-2], layers.LinearLayer(*phi[-2:])
        pairs = [inner[2 * i : 2 * i + 2] for i in range(depth - 1)]
        if h.dim() == 2:
            hidden = layers.apply_linears(h, [layers.LinearLayer(*pair, relu=True) for pair in pairs])
            return cross_entropy(greedy.conv_head(hidden, [], classifier), y)
        convolutions = [layers.ConvLayer(*pair, padding=1) for pair in pairs]
        return cross_entropy(greedy.conv_head(h, convolutions, classifier), y)

    return loss


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_layerwise_trains_one_block_after_another_as_the_twin(depth: int):
    rule = build("layerwise", aux_depth=depth)
    params = parameters_of(rule)
    heads = [[p.detach().clone() for p in objective.parameters()] for objective in rule.objectives][:-1]
    for number, phase in enumerate(rule.phases()):
        assert phase.blocks == range(number, number + 1)
        for x, y in batches():
            expected = greedy.decoupled_step(
                CASE.functions, params, heads, [head_loss(depth)] * 3, x, y, LR, trained=[number]
            )
            params, heads = expected.params, expected.dictionary
            found = gradients_of(rule, rule.features(x, number), y, blocks=phase.blocks)
            assert list(found) == [number]
            torch.testing.assert_close(found[number][0], expected.losses[number], **EXACT)
            torch.testing.assert_close(found[number][2], expected.gradients[number], **EXACT)
            sgd(rule)
            torch.testing.assert_close(parameters_of(rule), params, **EXACT)
            found_heads = [[p.detach() for p in o.parameters()] for o in list(rule.objectives)[:-1]]
            torch.testing.assert_close(found_heads, heads, **EXACT)


def predictors_of(rule: localprop.Rule) -> list[Tensor]:
    return [objective.weight.detach().T.clone() for objective in list(rule.objectives)[:-1]]


@pytest.mark.parametrize(
    ("method", "kind", "loss"),
    [
        ("cafo-ce", "ce", cross_entropy),
        ("cafo-sparsemax", "sparsemax", cascaded.sparsemax_loss),
        ("cafo-dfa", "ce", cross_entropy),
    ],
)
def test_the_cascade_trains_as_the_twin(method: str, kind: cascaded.Loss, loss: Callable[..., Tensor]):
    rule = build(method)
    for x, y in batches():
        params, predictors = parameters_of(rule), predictors_of(rule)
        hidden = CASE.functions[:-1]
        if method == "cafo-dfa":
            feedback = [objective.feedback for objective in list(rule.objectives)[:-1]]
            expected = cascaded.cascaded_dfa_step(hidden, params[:-1], predictors, feedback, x, y)
        else:
            expected = cascaded.cascaded_step(hidden, params[:-1], predictors, x, y, loss=kind)
        h = x
        for block, theta in zip(hidden, params, strict=False):
            h = block(h, theta)
        last = [p.clone().requires_grad_() for p in params[-1]]
        logits = CASE.functions[-1](h, last)
        last_loss = loss(logits, y)

        found = gradients_of(rule, x, y)
        assert list(found) == list(range(4))
        for index in range(3):
            torch.testing.assert_close(found[index][0], expected.losses[index], **EXACT)
            torch.testing.assert_close(found[index][1], expected.logits[index], **EXACT)
            torch.testing.assert_close(found[index][2], expected.gradients[index], **EXACT)
            torch.testing.assert_close(found[index][3], [expected.predictor_gradients[index].T], **EXACT)
        torch.testing.assert_close(found[3][0], last_loss.detach(), **EXACT)
        torch.testing.assert_close(found[3][2], list(torch.autograd.grad(last_loss, last)), **EXACT)
        reading = "sparsemax" if kind == "sparsemax" else "softmax"
        answer = cascaded.cascade_prediction([*expected.logits, logits.detach()], reading)
        rule.clear_gradients()
        torch.testing.assert_close(rule.eval().predict(x).softmax(1), answer / 4, **EXACT)
        gradients_of(rule.train(), x, y)
        sgd(rule)


@pytest.mark.parametrize("ridge", [1e-4, 0.1])
def test_the_closed_form_is_that_of_the_twin(ridge: float):
    rule = build("cafo-mse", ridge=ridge)
    [phase] = rule.phases()
    params = parameters_of(rule)
    x, y = torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()])
    rule.eval()
    with torch.no_grad():
        rule.prepare(phase, batches())
        rule.finish(phase, batches())
    h, logits = x, []
    for index in range(4):
        if index == 3:
            readout = rule.net.blocks[-1]
            features = torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], 1)
            found = torch.cat([readout.weight, readout.bias[:, None]], 1).T
        else:
            h = CASE.functions[index](h, params[index])
            features, found = h.flatten(1), rule.objectives[index].weight.T
        size = features.shape[1]
        absolute = ridge * float((features**2).sum()) / size
        expected = cascaded.closed_form(features, y, CLASSES, absolute)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
        logits.append(cascaded.predictor_logits(features, expected))
    answer = cascaded.cascade_prediction(logits)
    torch.testing.assert_close(rule.predict(x).softmax(1), answer / 4, rtol=1e-7, atol=1e-9)
    assert list(rule.steps(x, y)) == []


def test_without_a_ridge_the_solution_is_the_one_of_least_norm():
    rule = build("cafo-mse", ridge=0.0)
    [phase] = rule.phases()
    rule.eval()
    with torch.no_grad():
        rule.finish(phase, batches())
        x, y = torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()])
        h = rule.net.blocks[0](x).flatten(1)  # 108 features of 12 images
        expected = torch.linalg.pinv(h) @ torch.nn.functional.one_hot(y, CLASSES).double()
    torch.testing.assert_close(rule.objectives[0].weight.T, expected, rtol=1e-6, atol=1e-8)


def test_sparsemax_is_the_projection_onto_the_simplex():
    for z in torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2:
        torch.testing.assert_close(sparsemax(z[None])[0], cascaded.simplex_projection(z), **EXACT)


# ---------------------------------------------------------------- patches

SHAPE = (2, 9, 9)
SIZE, KERNEL, PER_IMAGE = 10, 3, 4


def patch_rule() -> PatchDictionaries:
    torch.manual_seed(3)
    net = localprop.models.patches(SHAPE, CLASSES, width=SIZE / 2048, patch_size=KERNEL)
    example = torch.zeros(1, *SHAPE)
    rule = localprop.methods.build("patches", net, num_classes=CLASSES, example=example, patches_per_image=PER_IMAGE)
    rule = rule.double()
    rule.seed = 5
    return rule


def drawn_by_hand(rule: PatchDictionaries) -> tuple[Tensor, list[float], twin_patches.Matrix]:
    """Return the dictionary, mean and whitener that `prepare` must have found, from the same draws."""
    generator = torch.Generator().manual_seed(derive(rule.seed, "patches", 0))
    side = SHAPE[1] - KERNEL + 1
    patches, keys = [], []
    for x, _ in batches(SHAPE):
        positions = torch.randint(side * side, (len(x), 1, PER_IMAGE), generator=generator)
        keys.append(torch.rand(len(x) * PER_IMAGE, generator=generator, dtype=torch.float64))
        places = [(n, int(p) // side, int(p) % side) for n in range(len(x)) for p in positions[n, 0]]
        patches.append(twin_patches.choose_patches(x, KERNEL, places))
    every, order = torch.cat(patches), torch.cat(keys).argsort(descending=True)
    mean, sigma = twin_patches.mean_and_covariance(every)
    return every[order[:SIZE]], mean, twin_patches.whitening_matrix(sigma, 1e-3)


def test_patches_are_whitened_coded_pooled_and_trained_as_the_twin():
    rule = patch_rule()
    [phase] = rule.phases()
    with torch.no_grad():
        rule.prepare(phase, batches(SHAPE))
    dictionary, mean, whitener = drawn_by_hand(rule)
    coding, _, _, norm, convolution, _, linear = rule.net.blocks[0]
    assert isinstance(coding, PatchCoding)
    assert coding.neighbours == 4
    for x, y in batches(SHAPE):
        codes = torch.cat(
            [
                twin_patches.encode(x, dictionary, mean, whitener, KERNEL, coding.neighbours, negated=negated)
                for negated in (False, True)
            ],
            1,
        )
        assert torch.equal(coding(x), codes)
        pooled = twin_patches.average_pool(codes, 5, 3)
        pooled = twin_patches.adaptive_average_pool(pooled, min(6, pooled.shape[2]))
        parameters = [*norm.parameters(), *convolution.parameters(), *linear.parameters()]
        leaves = [p.detach().clone().requires_grad_() for p in parameters]
        h = layers.batch_norm(pooled, leaves[0], leaves[1])
        h = layers.conv2d(h, leaves[2], leaves[3]).flatten(1)
        loss = cross_entropy(layers.linear(h, leaves[4], leaves[5]), y)

        [step] = rule.steps(x, y)
        torch.testing.assert_close(step.loss, loss.detach(), **EXACT)
        expected = list(torch.autograd.grad(loss, leaves))
        torch.testing.assert_close([p.grad for p in parameters], expected, rtol=1e-9, atol=1e-11)
        sgd(rule)


def test_the_nearest_patches_are_not_those_without_the_half():
    rule = patch_rule()
    coding = rule.net.blocks[0][0]
    wrong = copy.deepcopy(coding)
    wrong.half_norms.mul_(2)
    x = batches(SHAPE)[0][0]
    assert not torch.equal(coding(x), wrong(x))


def test_a_later_stage_codes_the_features_of_the_stage_before():
    torch.manual_seed(0)
    net = localprop.models.patches((1, 16, 16), CLASSES, width=0.01, stages=2)
    x, y = torch.randn(40, 1, 16, 16), torch.arange(40) % CLASSES
    rule = localprop.methods.build("patches", net, num_classes=CLASSES, example=x)
    before = copy.deepcopy(rule.state_dict())
    first, second = rule.phases()
    rule.eval()
    with torch.no_grad():
        rule.prepare(first, [(x, y)])
        middle = copy.deepcopy(rule.state_dict())
        rule.prepare(second, [(rule.features(x, 1), y)])
    moved = [
        {name for name, value in new.items() if not torch.equal(value, old[name])}
        for old, new in ((before, middle), (middle, rule.state_dict()))
    ]
    for index, names in enumerate(moved):
        assert names == {f"net.blocks.{index}.0.{name}" for name in ("filters", "offsets", "half_norms")}


def test_too_few_patches_and_other_networks_are_refused():
    rule = patch_rule()
    with pytest.raises(ValueError, match="patches_per_image: 4 patches were drawn for a dictionary of 10; raise it"):
        rule.prepare(rule.phases()[0], [(torch.randn(1, *SHAPE, dtype=torch.float64), torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"block '0' codes no patches.*--model patches"):
        localprop.methods.build(
            "patches", localprop.LocalNetwork([nn.Linear(4, 3)]), num_classes=3, example=torch.zeros(1, 4)
        )
    net = localprop.LocalNetwork([nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())])
    with pytest.raises(ValueError, match="last block must end in a linear layer to be solved for, '1' ends in ReLU"):
        localprop.methods.build("cafo-mse", net, num_classes=3, example=torch.zeros(1, 4))


# ---------------------------------------------------------------- clusters


def sampled(h: list[Tensor], generator: torch.Generator, samples: int) -> Tensor:
    """Return the positions that `prepare` must have drawn of a block's outputs, from the same keys."""
    points = [clustering.positions(part) for part in h]
    keys = torch.cat([torch.rand(len(p), generator=generator, dtype=torch.float64) for p in points])
    return torch.cat(points)[keys.argsort(descending=True)[:samples]]


def test_clusters_are_found_passed_on_and_trained_on_as_by_the_twin():
    rule = build("clusters", clusters=5, samples=40, iterations=3, feature_budget=1)
    rule.seed = 5
    params = parameters_of(rule)
    maps = {index for index, spec in enumerate(rule.specs[:-1]) if len(spec.shape) == 3}
    assert maps == {0, 1}
    inputs = [x for x, _ in batches()]
    for number, phase in enumerate(rule.phases()):
        rule.eval()
        with torch.no_grad():
            rule.prepare(phase, [(rule.features(x, number), y) for x, y in batches()])
        rule.train()
        if number - 1 in maps:
            generator = torch.Generator().manual_seed(derive(rule.seed, "clusters", number))
            points = sampled(inputs, generator, 40)
            start = spread_centres(points, 5, generator)
            assert {tuple(p) for p in start.tolist()} <= {tuple(p) for p in points.tolist()}
            centres = clustering.k_means(points, start, 3)
            torch.testing.assert_close(rule.net.blocks[number][0].centres, centres, **EXACT)
            inputs = [clustering.replace_by_clusters(h, centres) for h in inputs]
        for (x, y), h in zip(batches(), inputs, strict=True):
            found = gradients_of(rule, rule.features(x, number), y, blocks=phase.blocks)
            if number in maps:  # the twin's head reads the average over positions, as a budget of 1 does
                head = [p.detach() for p in rule.objectives[number].parameters()]
                expected = clustering.level_step(CASE.functions[number], params[number], head, h, y)
                torch.testing.assert_close(found[number][0], expected.loss, **EXACT)
                torch.testing.assert_close(found[number][2], expected.gradients, **EXACT)
                torch.testing.assert_close(found[number][3], expected.head_gradients, **EXACT)
            sgd(rule)
            params = parameters_of(rule)
        inputs = [CASE.functions[number](h, params[number]) for h in inputs]
    found = rule.eval().predict(batches()[0][0])
    torch.testing.assert_close(found, inputs[0], **EXACT)
    other = build("clusters", clusters=5, samples=40, iterations=3, feature_budget=1)
    other.load_state_dict(rule.state_dict())  # the centres are state, and that they are there
    assert torch.equal(other.eval().predict(batches()[0][0]), found)


def test_k_means_is_that_of_the_twin_to_the_end():
    generator = torch.Generator().manual_seed(0)
    points, far = torch.randn(30, 2, generator=generator, dtype=torch.float64), torch.full((1, 2), 100.0).double()
    start = torch.cat([points[:4], far, points[:1]])  # one centre gets no points, and one is there twice
    for iterations in (0, 1, 2, 100):
        expected = clustering.k_means(points, start, iterations)
        torch.testing.assert_close(k_means(points, start, iterations), expected, **EXACT)
    settled = k_means(points, start, 100)
    assert torch.equal(settled[4:5], far)
    assert nearest_centres(points, settled).tolist() == clustering.assign(points, settled)
    assert nearest_centres(points[:1], start).tolist() == [0]


def test_centres_start_apart_and_repeat_where_points_do():
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0]]).double()
    for seed in range(8):
        start = spread_centres(points, 3, torch.Generator().manual_seed(seed))
        assert {0.0, 5.0} == set(start[:2].flatten().tolist())
        assert len(start) == 3
        assert torch.equal(start, spread_centres(points, 3, torch.Generator().manual_seed(seed)))


def test_a_position_that_is_not_a_number_stays_so():
    rule = build("clusters", clusters=2, samples=10)
    with torch.no_grad():
        rule.prepare(rule.phases()[1], [(rule.eval().features(x, 1), y) for x, y in batches()])
    code = rule.net.blocks[1][0]
    h = torch.randn(1, *rule.specs[0].shape, dtype=torch.float64)
    h[0, 0, 0, 0] = torch.nan
    assert code(h)[0, :, 0, 0].isnan().all()
    assert code(h)[0, :, 0, 1:].isfinite().all()


def test_what_cannot_be_clustered_is_refused():
    rule = build("clusters", clusters=30, samples=30)
    with pytest.raises(ValueError, match="clusters: the training set gives 4 positions for 30 clusters of block '0'"):
        rule.prepare(rule.phases()[1], [(torch.zeros(1, *rule.specs[0].shape)[:, :, :2, :2], torch.tensor([0]))])
    net = localprop.LocalNetwork([nn.Linear(4, 5), nn.Linear(5, 3)])
    for settings, message in (
        ({}, r"no block before the last gives a map.*got outputs of shapes \[\(5,\), \(3,\)\]; use a convolutional"),
        ({"clusters": 1}, "clusters: must be at least 2, got 1"),
        ({"samples": 100}, "samples: must be at least the number of clusters, 128, got 100"),
        ({"iterations": 0}, "iterations: must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            localprop.methods.build("clusters", net, num_classes=3, example=torch.zeros(1, 4), **settings)
