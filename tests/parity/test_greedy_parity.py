"""Greedy learning and its bounds, overlapping windows and deeper auxiliary networks, each against its twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.functional import depth, targets
from localprop.models.parts import FlatBlock
from localprop.objectives import AuxiliaryNetwork
from localprop.objectives.heads import PatchAverage, build_head
from localprop.objectives.image import build_decoder
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, LocalBatch
from tests.reference import auxiliary as twin_auxiliary
from tests.reference import greedy as twin
from tests.reference import overlap as twin_overlap
from tests.reference.dictionary import cross_entropy, dictionary_loss
from tests.reference.layers import (
    ConvLayer,
    LinearLayer,
    apply_convs,
    apply_linears,
    batch_norm,
    bilinear,
    conv_transpose2d,
    relu,
)
from tests.reference.prediction import pred_logits
from tests.reference.training import Groups, Step

PROVED = [
    "frozen",
    "last-block",
    "greedy",
    "dgl",
    "dgl-image",
    "dgl-shift",
    "dgl-rotation",
    "dgl-mixed",
    "dgl-coarse",
    "overlap",
    "auglocal",
    "man",
    "hpff",
]

EXACT = {"rtol": 1e-9, "atol": 1e-12}
LR = 0.05
CLASSES = 3
BUDGET = 2048
SHAPE = (1, 8, 8)

FUNCTIONS = [
    lambda x, p: F.conv2d(x, p[0], p[1], padding=1).clamp(min=0),
    lambda x, p: F.conv2d(F.max_pool2d(x, 2), p[0], p[1], padding=1).clamp(min=0),
    lambda x, p: torch.tanh(x.flatten(1) @ p[0].T + p[1]),
    lambda x, p: x @ p[0].T + p[1],
]
"""The network whose blocks end at their activations, so that the pooling of the first opens the second."""
BLOCKS = [
    lambda x, p: F.max_pool2d(FUNCTIONS[0](x, p), 2),
    lambda x, p: F.conv2d(x, p[0], p[1], padding=1).clamp(min=0),
]
BLOCKS += FUNCTIONS[2:]


def network(side: int = 8) -> localprop.LocalNetwork:
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()),
            FlatBlock(nn.Flatten(), nn.Linear(3 * (side // 2) ** 2, 6), nn.Tanh(), feature_chunks=1),
            nn.Linear(6, CLASSES),
        ]
    )


def batches(side: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    labels = ([0, 1, 0, 1], [2, 0, 1, 2])
    return [(torch.rand(4, 1, side, side, generator=generator, dtype=torch.float64), torch.tensor(y)) for y in labels]


def build(method: str, net: localprop.LocalNetwork | None = None, side: int = 8, **settings: object) -> localprop.Rule:
    torch.manual_seed(1)
    net = network() if net is None else net
    example = torch.zeros(1, 1, side, side)
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=example, **settings)
    return rule.double()


def values(parameters: object) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def of_blocks(rule: localprop.Rule) -> Groups:
    return [values(block.parameters()) for block in rule.net.blocks]


def of_objectives(rule: localprop.Rule) -> Groups:
    return [values(objective.updated_parameters()) for objective in rule.objectives]


def hidden_heads(rule: localprop.Rule) -> Groups:
    return of_objectives(rule)[:-1]


def train(rule: localprop.Rule, number: int, x: Tensor, y: Tensor) -> tuple[list[Tensor], Groups]:
    """Do one step with plain SGD; return every block's loss and its parameters' gradients."""
    losses, gradients = [], []
    groups = rule.parameter_groups()
    optimizers = {key: torch.optim.SGD(group, lr=LR) for key, group in groups.items()}
    rule.begin(number)
    for step in rule.steps(x, y):
        losses.append(step.loss)
        gradients.append(values(p.grad for p in rule.net.blocks[step.key[0]].parameters() if p.requires_grad))
        optimizers[step.key].step()
        optimizers[step.key].zero_grad(set_to_none=True)
    return losses, gradients


def assert_same_training(
    rule: localprop.Rule,
    twin_step: Callable[[Groups, Groups, Tensor, Tensor], Step],
    heads_of: Callable[[localprop.Rule], Groups] = hidden_heads,
    side: int = 8,
) -> None:
    params, heads = of_blocks(rule), heads_of(rule)
    for number, (x, y) in enumerate(batches(side)):
        expected = twin_step(params, heads, x, y)
        losses, gradients = train(rule, number, x, y)
        if expected.losses != [None] * len(losses):
            torch.testing.assert_close(losses, expected.losses, **EXACT)
        torch.testing.assert_close(gradients, expected.gradients, **EXACT)
        params, heads = expected.params, expected.dictionary
        torch.testing.assert_close(of_blocks(rule), params, **EXACT)
        torch.testing.assert_close(heads_of(rule), heads, **EXACT)


def normalised(phi: Sequence[Tensor], layer: type, count: int, **settings: object) -> list:
    """Read `count` layers with batch normalisation off the front of the parameters."""
    size = 4 if layer is LinearLayer else 3
    rows = [phi[size * i : size * (i + 1)] for i in range(count)]
    if layer is LinearLayer:
        return [LinearLayer(w, b, gamma, beta, relu=True) for w, b, gamma, beta in rows]
    return [ConvLayer(w, None, gamma, beta, **settings) for w, gamma, beta in rows]


def head_logits(name: str, h: Tensor, phi: list[Tensor]) -> Tensor:
    """Return the twin's logits for a head's parameters in the library's order."""
    classifier = LinearLayer(*phi[-2:])
    if name == "linear":
        return twin.conv_head(h, [], classifier)
    if name == "mlp":
        return twin.mlp_head(h, [*normalised(phi, LinearLayer, 3), classifier])
    convs = normalised(phi, ConvLayer, 3 if name == "mlp-sr" else 2)
    if name == "cnn":
        return twin.cnn_head(h, convs, twin.Norm(*phi[6:8]), classifier)
    linears = [*normalised(phi[9:], LinearLayer, 3), classifier]
    if h.dim() == 2:  # one position: nothing is pooled
        return apply_linears(apply_convs(h[:, :, None, None], convs).flatten(1), linears)
    return twin.mlp_sr_head(h, convs, linears)


def linear_loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
    return cross_entropy(head_logits("linear", h, phi), y)


def spec_of(*shape: int) -> BlockSpec:
    return BlockSpec(0, 2, "block", SHAPE, shape, 0, 1, CLASSES, shape)


@pytest.mark.parametrize("size", [(5, 7)])
@pytest.mark.parametrize("name", ["linear", "mlp", "mlp-sr", "cnn"])
def test_heads_and_their_gradients(name: str, size: tuple[int, int]):
    torch.manual_seed(0)
    spec = spec_of(2, *size)
    objective = AuxiliaryNetwork(spec, build_head(name, spec.shape)).double()
    h, y = torch.randn(4, 2, *size, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 0])
    phi = [p.detach().clone().requires_grad_() for p in objective.parameters()]
    expected = cross_entropy(head_logits(name, h, phi), y)
    found = objective(h, LocalBatch(y, h)).loss
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(found, [h, *objective.parameters()]), torch.autograd.grad(expected, [h, *phi]), **EXACT
    )


@pytest.mark.parametrize(("height", "width"), [(8, 6), (4, 4)])
def test_patches_are_averaged(height: int, width: int):
    torch.manual_seed(0)
    features = PatchAverage("linear", (2, height, width), 2).double()
    objective = AuxiliaryNetwork(spec_of(2, height, width), features).double()
    h = torch.randn(3, 2, height, width, dtype=torch.float64)
    phi = values(objective.parameters())
    expected = twin_auxiliary.patch_average(lambda patch: head_logits("linear", patch, phi), h)
    torch.testing.assert_close(objective.logits(h).detach(), expected, **EXACT)


def test_frozen():
    rule = build("frozen")
    params, probes = of_blocks(rule), hidden_heads(rule)
    for number, (x, y) in enumerate(batches()):
        expected = twin.frozen_step(BLOCKS, params, x, y, LR)
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(gradients, expected.gradients, **EXACT)
        torch.testing.assert_close(losses[-1], expected.losses[-1], **EXACT)
        h = x
        for i in range(3):
            h = BLOCKS[i](h, params[i])
            phi = twin.leaves_of(probes[i])
            loss = cross_entropy(pred_logits(h, *phi, BUDGET), y)
            torch.testing.assert_close(losses[i], loss.detach(), **EXACT)
            probes[i] = twin.descend(phi, twin.gradients_of(loss, phi), LR)
        params = expected.params
        torch.testing.assert_close(of_blocks(rule), params, **EXACT)
        torch.testing.assert_close(hidden_heads(rule), probes, **EXACT)


def test_last_block():
    rule = build("last-block")

    def step(params: Groups, heads: Groups, x: Tensor, y: Tensor) -> Step:
        found = twin.last_block_step(lambda h, p: h.flatten(1) @ p[0].T + p[1], params[0], x, y, LR)
        return found._replace(dictionary=[])

    assert_same_training(rule, step)


def test_greedy():
    rule = build("greedy")
    assert_same_training(
        rule, lambda params, heads, x, y: twin.decoupled_step(BLOCKS, params, heads, [linear_loss] * 3, x, y, LR)
    )


def wide_network() -> localprop.LocalNetwork:
    """Build blocks whose maps are large enough for every pooling of the heads."""
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True)),
            FlatBlock(nn.Flatten(), nn.Linear(128, 6), nn.Tanh(), feature_chunks=1),
            nn.Linear(6, CLASSES),
        ]
    )


WIDE = [FUNCTIONS[0], *FUNCTIONS[2:]]


def test_dgl():
    rule = build("dgl", wide_network())

    def loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
        return cross_entropy(head_logits("mlp-sr", h, phi), y)

    assert_same_training(
        rule, lambda params, heads, x, y: twin.decoupled_step(WIDE, params, heads, [loss] * 2, x, y, LR)
    )


def decode(activation: Tensor, phi: list[Tensor], upsampling: str) -> Tensor:
    """Draw an image of 4x4 from 4x4 or 2x2 maps, or from a flat activation."""
    if activation.dim() == 2:
        return apply_linears(activation, [LinearLayer(*phi)]).reshape(-1, 1, 4, 4)
    if upsampling == "bilinear":
        drawn = apply_convs(activation, [ConvLayer(*phi, relu=False)])
        return drawn if drawn.shape[2] == 4 else bilinear(drawn, 4, 4)
    for weight, bias in zip(phi[:-2:2], phi[1:-2:2], strict=True):
        activation = relu(conv_transpose2d(activation, weight, bias, stride=2, padding=1))
    return apply_convs(activation, [ConvLayer(*phi[-2:], relu=False)])


@pytest.mark.parametrize(
    ("method", "shifts", "upsampling", "weights"),
    [
        ("dgl-image", [0, 0, 0], "learned", (0.9, 0.1)),
        ("dgl-shift", twin.shifts(3), "bilinear", (0.5, 0.5)),
        ("dgl-shift", twin.shifts(3), "learned", (0.0, 2.0)),
    ],
)
def test_image_targets(method: str, shifts: list[int], upsampling: str, weights: tuple[float, float]):
    settings = {"head": "linear", "prediction_weight": weights[0], "image_weight": weights[1], "upsampling": upsampling}
    rule = build(method, network(side=4), 4, **settings)
    tails = [lambda a: F.max_pool2d(a, 2), lambda a: a, lambda a: a]

    def step(params: Groups, heads: Groups, x: Tensor, y: Tensor) -> Step:
        def loss_of(i: int) -> twin.LocalLoss:
            def loss(a: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
                h = tails[i](a if weights[0] else a.detach())
                drawn = twin.image_loss(decode(a, phi[2:], upsampling), x, shifts[i])
                return twin.label_and_image_loss(linear_loss(h, phi[:2], y), drawn, (weights[0] or 1.0, weights[1]))

            return loss

        return twin.decoupled_step(FUNCTIONS, params, heads, [loss_of(i) for i in range(3)], x, y, LR)

    assert_same_training(rule, step, side=4)


def test_a_decoder_crops_nothing_and_reaches_any_size():
    for shape in [(4, 3, 3), (9, 4), (5, 1, 1), (6,)]:
        for upsampling in ("learned", "bilinear"):
            h = torch.randn(2, *shape)
            assert build_decoder(shape, (3, 10, 12), upsampling)(h).shape == (2, 3, 10, 12)


def test_rotations():
    rule = build("dgl-rotation", head="linear", rotation_weight=0.5)
    rule.seed = 3
    counter = iter(range(10))

    def step(params: Groups, heads: Groups, x: Tensor, y: Tensor) -> Step:
        with seeded(derive(3, "rotation", next(counter), 1), x.device):
            turns = torch.randint(4, (4,))

        def loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
            turned = twin.rotation_loss(head_logits("linear", h[4:], phi[2:]), turns)
            return linear_loss(h[:4], phi[:2], y) + 0.5 * turned

        blocks = [*BLOCKS[:-1], lambda h, p: BLOCKS[-1](h, p)[:4]]
        both = torch.cat([x, twin.rotate(x, turns)])
        return twin.decoupled_step(blocks, params, heads, [loss] * 3, both, y, LR)

    assert_same_training(rule, step)


def test_rotated_images_are_those_of_the_twin():
    image, turns = torch.rand(5, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    assert torch.equal(targets.rotated_image(image, turns), twin.rotate(image, turns))


@pytest.mark.parametrize("form", [twin.mixed_hook_step, twin.mixed_loss_step])
@pytest.mark.parametrize("weight", [0.5, 0.2, 1.0])
def test_mixed_gradients_have_the_hook_form_and_the_single_loss_form(form: Callable[..., Step], weight: float):
    rule = build("dgl-mixed", head="linear", last_weight=weight)

    def step(params: Groups, heads: Groups, x: Tensor, y: Tensor) -> Step:
        found = form(BLOCKS, params, heads, twin.linear_head, x, y, LR, weight)
        return found._replace(losses=[None] * 4)

    assert_same_training(rule, step)


def test_mixed_losses_add_up_to_the_single_loss():
    rule = build("dgl-mixed", head="linear")
    x, y = batches()[0]
    expected = twin.mixed_loss_step(BLOCKS, of_blocks(rule), hidden_heads(rule), twin.linear_head, x, y, LR)
    losses, _ = train(rule, 0, x, y)
    torch.testing.assert_close(sum(losses), expected.losses[-1], **EXACT)


@pytest.mark.parametrize("first", [2, 3])
def test_coarse_targets(first: int):
    rule = build("dgl-coarse", head="linear", first_groups=first)
    groups = twin.group_counts(4, CLASSES, first)

    def loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
        coarse = twin.coarse_loss(head_logits("linear", h, phi[:2]), y, CLASSES)
        return coarse + cross_entropy(pred_logits(h.detach(), *phi[2:], BUDGET), y)

    assert [objective.num_groups for objective in rule.objectives[:-1]] == groups[:-1]
    assert_same_training(
        rule, lambda params, heads, x, y: twin.decoupled_step(BLOCKS, params, heads, [loss] * 3, x, y, LR)
    )


def test_numbers_in_a_line_and_groups_are_those_of_the_twin():
    for count in range(1, 9):
        assert [targets.spaced(i, count, 5, 16) for i in range(count)] == twin.shifts(count)
        assert [targets.spaced(i, count, 2, 10) for i in range(count)] == twin.group_counts(count, 10)
    y = torch.arange(10)
    for groups in range(1, 11):
        assert torch.equal(targets.class_groups(y, groups, 10), twin.coarse_labels(y, groups, 10))


def dictionary_of_block(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
    return dictionary_loss(h, phi[0], y)


OVERLAPPED = {"linear": linear_loss, "dcl": dictionary_of_block}


@pytest.mark.parametrize("objective", OVERLAPPED)
@pytest.mark.parametrize(("size", "shared"), [(2, 1), (2, 0), (3, 2), (3, 1), (1, 0), (4, 0)])
def test_overlap(size: int, shared: int, objective: str):
    rule = build("overlap", blocks_per_window=size, overlap=shared, objective=objective)
    spans = twin_overlap.windows(4, size, shared)
    assert [(w.blocks.start, w.blocks.stop) for w in rule.windows] == spans
    hidden = OVERLAPPED[objective]
    losses_of = [*[hidden] * (len(spans) - 1), lambda h, phi, y: cross_entropy(h, y)]
    ends = [stop - 1 for _, stop in spans]

    def step(params: Groups, heads: Groups, x: Tensor, y: Tensor) -> Step:
        found = twin_overlap.overlap_step(BLOCKS, params, spans, heads, losses_of, x, y, LR)
        of_end = dict(zip(ends, found.losses, strict=True))
        return found._replace(losses=[of_end[min(end for end in ends if end >= i)] for i in range(4)])

    assert_same_training(rule, step, of_objectives)


def chain_logits(i: int, copies: list[int], h: Tensor, phi: list[Tensor]) -> Tensor:
    """Run copies of blocks on h, with a 1x1 convolution where a block is left out, then the averaged classifier."""
    rest = list(phi)
    for block in copies:
        if i == 0 and block == 2 and len(copies) == 1:
            h = F.conv2d(h, rest.pop(0))
        h = BLOCKS[block](h, [rest.pop(0), rest.pop(0)])
    h = h.mean((2, 3)) if h.dim() == 4 else h
    if len(copies) == 1:
        h = batch_norm(h, rest.pop(0), rest.pop(0))
    return h @ rest[0].T + rest[1]


@pytest.mark.parametrize("depth_at_first", [1, 2])
def test_auglocal(depth_at_first: int):
    rule = build("auglocal", depth=depth_at_first)
    copies = []
    for i in range(3):
        length = twin_auxiliary.pyramid_depth(i, 4, depth_at_first)
        copies.append(twin_auxiliary.auxiliary_indices(i, 3, length))
    assert copies[0] == ([2] if depth_at_first == 1 else [1, 2])

    def loss_of(i: int) -> twin.LocalLoss:
        return lambda h, phi, y: cross_entropy(chain_logits(i, copies[i], h, phi), y)

    losses_of = [loss_of(i) for i in range(3)]
    assert_same_training(
        rule, lambda params, heads, x, y: twin.decoupled_step(BLOCKS, params, heads, losses_of, x, y, LR)
    )


def test_depths_and_indices_are_those_of_the_twin():
    for blocks in range(2, 60, 7):
        for layer in range(blocks - 1):
            for d in range(1, 8):
                for c in (0.0, 0.5, 1.0):
                    found = depth.pyramid_depth(layer, blocks, d, c)
                    assert found == twin_auxiliary.pyramid_depth(layer, blocks, d, c)
                expected = twin_auxiliary.auxiliary_indices(layer, blocks - 1, d)
                assert depth.uniform_indices(layer, blocks - 1, d) == expected


def test_man():
    rule = build("man", head="linear", momentum=0.9)
    params, objectives = of_blocks(rule), hidden_heads(rule)
    copies, heads = [phi[:2] for phi in objectives[:2]], [phi[-2:] for phi in objectives]
    averages = [values(pair.average.parameters()) for pair in rule.pairs.values()]
    for number, (x, y) in enumerate([*batches(), *batches()]):
        before = averages
        expected, copies, averages = twin_auxiliary.man_step(
            BLOCKS, params, copies, averages, heads, [linear_loss] * 3, x, y, LR, 0.9
        )
        losses, gradients = train(rule, number, x, y)
        following = [values(pair.average.parameters()) for pair in rule.pairs.values()]
        torch.testing.assert_close(following, before, **EXACT)  # in this step; the twin has moved them for the next
        torch.testing.assert_close(losses, expected.losses, **EXACT)
        torch.testing.assert_close(gradients, expected.gradients, **EXACT)
        params, heads = expected.params, expected.dictionary
        torch.testing.assert_close(of_blocks(rule), params, **EXACT)
        found = hidden_heads(rule)
        torch.testing.assert_close([phi[:2] for phi in found[:2]], copies, **EXACT)
        torch.testing.assert_close([phi[-2:] for phi in found], heads, **EXACT)


def test_hpff():
    rule = build("hpff", head="linear", independent_weight=0.3, cascade_weight=0.7)
    seen: dict[tuple[str, int], Tensor] = {}

    def loss_of(kind: str, i: int) -> twin.LocalLoss:
        def loss(h: Tensor, phi: list[Tensor], y: Tensor) -> Tensor:
            if i == 3:
                logits = h
            elif h.dim() == 4:
                logits = twin_auxiliary.patch_average(lambda patch: head_logits("linear", patch, phi), h)
            else:
                logits = head_logits("linear", h, phi)
            found = cross_entropy(logits, y)
            seen[kind, i] = found.detach()
            return found

        return loss

    kinds = [[loss_of(kind, i) for i in range(4)] for kind in ("independent", "cascade")]
    params, objectives = of_blocks(rule), of_objectives(rule)  # in the order 0, 1, 0-1, 2, 1-2, 3, 2-3
    heads, cascade_heads = [objectives[i] for i in (0, 1, 3, 5)], [[], *[objectives[i] for i in (2, 4, 6)]]
    for number, (x, y) in enumerate(batches()):
        expected, cascade_heads = twin_auxiliary.hpff_step(
            BLOCKS, params, heads, cascade_heads, *kinds, x, y, LR, [(0.3, 0.7)] * 4
        )
        losses, gradients = train(rule, number, x, y)
        torch.testing.assert_close(losses, [seen["independent", 0], *[seen["cascade", i] for i in (1, 2, 3)]], **EXACT)
        torch.testing.assert_close(gradients, expected.gradients, **EXACT)
        params, heads = expected.params, expected.dictionary
        torch.testing.assert_close(of_blocks(rule), params, **EXACT)
        found = of_objectives(rule)
        torch.testing.assert_close([found[i] for i in (0, 1, 3, 5)], heads, **EXACT)
        torch.testing.assert_close([found[i] for i in (2, 4, 6)], cascade_heads[1:], **EXACT)
