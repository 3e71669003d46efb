"""Windows, second passes and copies: how far gradients reach, what stays alive, and what a re-run leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.models.parts import FlatBlock
from localprop.train.executor import LocalExecutor
from localprop.types import LocalBatch
from tests.isolation.test_isolation import SavedBytes

CLASSES = 3
LAYERS = 5


def network(dropout: float = 0.2) -> localprop.LocalNetwork:
    widths = [1, 3, 4, 4]
    blocks: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(widths[i], widths[i + 1], 3, padding=1),
            nn.BatchNorm2d(widths[i + 1]),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )
        for i in range(3)
    ]
    blocks.append(FlatBlock(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Dropout(dropout), feature_chunks=1))
    return localprop.LocalNetwork([*blocks, nn.Linear(12, CLASSES)])


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def build(method: str, dropout: float = 0.2, **settings: object) -> localprop.Rule:
    torch.manual_seed(0)
    return localprop.methods.build(method, network(dropout), num_classes=CLASSES, example=batch()[0], **settings)


def adamw(group: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(group, lr=0.01)


def watch(rule: localprop.Rule) -> dict[int, list[Tensor]]:
    """Collect every block's outputs, run after run."""
    seen: dict[int, list[Tensor]] = {index: [] for index in range(len(rule.net))}
    for index, block in enumerate(rule.net.blocks):
        block.register_forward_hook(lambda module, args, out, i=index: seen[i].append(out.detach().clone()))
    return seen


WINDOWS = [(2, 1), (3, 2), (3, 1), (2, 0), (5, 0)]


@pytest.mark.parametrize(("size", "shared"), WINDOWS)
def test_gradients_reach_the_blocks_of_a_window_and_no_others(size: int, shared: int):
    rule = build("overlap", blocks_per_window=size, overlap=shared, objective="linear")
    for window in rule.windows:
        outputs = rule.net.run_window(torch.randn(6, *rule.specs[window.blocks.start].input_shape), window.blocks)
        window.objective(outputs[-1], LocalBatch(batch()[1], batch()[0])).loss.backward()
        touched = [any(p.grad is not None for p in block.parameters()) for block in rule.net.blocks]
        assert touched == [index in window.blocks for index in range(LAYERS)]
        rule.clear_gradients()


@pytest.mark.parametrize(("size", "shared"), WINDOWS)
def test_one_windows_graph_is_alive_at_a_time(size: int, shared: int):
    rule = build("overlap", dropout=0.0, blocks_per_window=size, overlap=shared, objective="linear")
    x, y = batch()
    inputs, own = [x], []
    for block in rule.net.blocks:
        inputs.append(block(inputs[-1]).detach())
    for window in rule.windows:
        alone = SavedBytes()
        with alone.hooks():
            outputs = rule.net.run_window(inputs[window.blocks.start], window.blocks)
            window.objective(outputs[-1], LocalBatch(y, x)).loss.backward()
        own.append(alone.peak)
        del outputs
    rule.clear_gradients()
    saved = SavedBytes()
    with saved.hooks():
        for step in rule.steps(x, y):
            assert saved.now == 0
            for parameter in rule.parameter_groups()[step.key]:
                parameter.grad = None
    assert min(own) > 0
    assert 0.99 * max(own) < saved.peak <= max(own)  # a second run does not keep running statistics


@pytest.mark.parametrize(
    ("method", "settings", "runs"),
    [
        ("overlap", {"blocks_per_window": 3, "overlap": 2}, [1, 2, 3, 2, 1]),
        ("overlap", {}, [1, 2, 2, 2, 1]),
        ("hpff", {}, [2, 3, 3, 3, 2]),
        ("dgl-mixed", {}, [2] * LAYERS),
    ],
)
def test_a_second_run_gives_the_same_bits_and_moves_no_statistics(method: str, settings: dict, runs: list[int]):
    rule, once = build(method, **settings), build("frozen")
    seen = watch(rule)
    LocalExecutor(rule, adamw).step(0, *batch())
    assert [len(seen[index]) for index in range(LAYERS)] == runs
    for outputs in seen.values():
        assert all(torch.equal(output, outputs[0]) for output in outputs)
    LocalExecutor(once, adamw).step(0, *batch())
    for module, other in zip(rule.net.modules(), once.net.modules(), strict=True):
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 1
            assert module.track_running_stats
            # A watched block runs layer by layer, another by fused functions: equal up to rounding.
            torch.testing.assert_close(module.running_mean, other.running_mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["dgl-mixed", "dgl-rotation"])
def test_one_blocks_graph_is_alive_at_a_time(method: str):
    rule = build(method, head="linear")
    saved, peaks = SavedBytes(), []
    with saved.hooks():
        for step in rule.steps(*batch()):
            assert saved.now == 0
            peaks.append(saved.peak)
            saved.peak = 0
            for parameter in rule.parameter_groups()[step.key]:
                parameter.grad = None
    together = SavedBytes()
    with together.hooks():
        rule.net(batch()[0])
        whole = together.peak
    samples = 2 if method == "dgl-rotation" else 1
    assert max(peaks) < 0.8 * samples * whole


def test_a_mixed_last_error_is_that_of_the_blocks_that_stream():
    """With dropout, statistics and updates in between, the first pass must still make the second's logits."""
    rule = build("dgl-mixed", dropout=0.5)
    seen = watch(rule)
    LocalExecutor(rule, adamw).step(3, *batch())
    first, second = seen[LAYERS - 1]
    assert torch.equal(first, second)


def test_hidden_blocks_stay_frozen():
    rule = build("frozen")
    before = [p.detach().clone() for block in rule.net.blocks[:-1] for p in block.parameters()]
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.1, weight_decay=0.5))
    for number in range(3):
        executor.step(number, *batch(number))
    after = [p for block in rule.net.blocks[:-1] for p in block.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in after)


def test_without_weight_the_label_does_not_reach_a_block():
    gradients = []
    x, y = batch()
    for labels in (y, y.flip(0)):
        rule = build("dgl-image", dropout=0.0, prediction_weight=0.0)
        steps = rule.steps(x, labels)
        step = next(steps)
        gradients.append([p.grad.clone() for p in rule.net.blocks[0].parameters()])
        assert step.logits is not None
        assert all(p.grad is not None for p in rule.objectives[0].prediction.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_probe_of_classes_does_not_reach_a_block():
    rule = build("dgl-coarse", dropout=0.0)
    objective, (x, y) = rule.objectives[0], batch()
    h = rule.net.blocks[0](x)
    grouped = y * objective.num_groups // CLASSES
    whole = torch.autograd.grad(objective(h, LocalBatch(y, x)).loss, h, retain_graph=True)[0]
    assert torch.equal(whole, torch.autograd.grad(objective.groups(h, LocalBatch(grouped, x)).loss, h)[0])


def test_turns_are_drawn_anew_and_a_stretch_draws_the_same():
    whole, parts = build("dgl-rotation"), build("dgl-rotation")
    x, y = batch()
    steps = list(whole.steps(x, y))
    assert steps[0].output.shape[0] == 2 * len(x)
    first = list(parts.steps(x, y, blocks=range(0, 2)))
    parts.begin(0)
    list(parts.steps(first[-1].output, y, blocks=range(2, LAYERS)))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    outputs = [next(build_at(number).steps(x, y)).output for number in range(4)]
    assert not any(torch.equal(output, outputs[0]) for output in outputs[1:])


def build_at(number: int) -> localprop.Rule:
    rule = build("dgl-rotation", dropout=0.0)
    rule.begin(number)
    return rule


def averages_of(rule: localprop.Rule) -> list[Tensor]:
    return [p.clone() for pair in rule.pairs.values() for p in pair.average.parameters()]


def test_an_average_follows_the_next_block_and_is_trained_by_nothing():
    rule = build("man", momentum=0.75)
    executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.1, weight_decay=0.5))
    start = averages_of(rule)
    executor.step(0, *batch())
    assert all(torch.equal(a, b) for a, b in zip(averages_of(rule), start, strict=True))
    following = [p.clone() for index in rule.pairs for p in rule.net.blocks[index + 1].parameters()]
    executor.step(1, *batch(1))
    for average, before, parameter in zip(averages_of(rule), start, following, strict=True):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * parameter)
    grouped = {p for group in rule.parameter_groups().values() for p in group}
    assert not grouped & {p for pair in rule.pairs.values() for p in pair.average.parameters()}


@pytest.mark.parametrize("method", ["man", "overlap", "hpff", "dgl-mixed", "dgl-rotation", "auglocal"])
def test_a_run_goes_on_from_its_state_to_the_same_bits(method: str):
    whole = build(method)
    executor = LocalExecutor(whole, adamw)
    for number in range(2):
        executor.step(number, *batch(number))
    resumed = build(method)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    other = LocalExecutor(resumed, adamw)
    other.load_state_dict(copy.deepcopy(executor.state_dict()))
    for number in range(2, 4):
        executor.step(number, *batch(number))
        other.step(number, *batch(number))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_copies_of_later_blocks_share_nothing_with_them():
    rule = build("auglocal", depth=2)
    of_network = {p.data_ptr() for p in rule.net.parameters()}
    copied = [p for objective in rule.objectives[:-1] for p in objective.features.parameters()]
    assert copied
    assert not of_network & {p.data_ptr() for p in copied}
    kernels = [m.weight for m in rule.objectives[0].features.modules() if isinstance(m, nn.Conv2d)]
    originals = [m.weight for m in rule.net.modules() if isinstance(m, nn.Conv2d)]
    assert not any(torch.equal(a, b) for a in kernels for b in originals if a.shape == b.shape)


def refused(method: str, net: localprop.LocalNetwork, x: Tensor, **settings: object) -> Callable[[], object]:
    return lambda: localprop.methods.build(method, net, num_classes=CLASSES, example=x, **settings)


def flat() -> localprop.LocalNetwork:
    return localprop.LocalNetwork([nn.Sequential(nn.Linear(8, 6), nn.ReLU()), nn.Linear(6, CLASSES)])


def tall() -> localprop.LocalNetwork:
    return localprop.LocalNetwork(
        [nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused("dgl-image", flat(), torch.zeros(1, 8)), r"needs images of shape.*got samples of \(8,\)"),
        (refused("dgl-rotation", tall(), torch.zeros(1, 1, 4, 6)), "only square images.*got 4 x 6"),
        (refused("dgl", flat(), torch.zeros(1, 8), head="conv"), "head: must be one of.*got 'conv'"),
        (refused("dgl-mixed", flat(), torch.zeros(1, 8), last_weight=1.5), r"last_weight: must lie in 0 \.\. 1, got 1"),
        (
            refused("dgl-coarse", flat(), torch.zeros(1, 8), first_groups=4),
            r"first_groups: must lie in 2 \.\. 3.*got 4",
        ),
        (refused("dgl-rotation", network(), batch()[0], rotation_weight=0.0), "rotation_weight: must be positive"),
        (refused("dgl-image", network(), batch()[0], image_weight=-1.0), "image_weight: must be at least 0.*got -1"),
        (
            refused("dgl-image", network(), batch()[0], image_weight=0.0, prediction_weight=0.0),
            "both are 0, so nothing would train",
        ),
        (refused("dgl-image", network(), batch()[0], upsampling="cubic"), "upsampling: must be one of.*got 'cubic'"),
        (refused("overlap", network(), batch()[0], blocks_per_window=6), r"blocks_per_window: .* 1 \.\. 5.*got 6"),
        (refused("overlap", network(), batch()[0], overlap=2), r"overlap: must lie in 0 \.\. blocks_per_window - 1"),
        (refused("overlap", network(), batch()[0], objective="sim"), "objective: must be one of.*got 'sim'"),
        (refused("auglocal", network(), batch()[0], depth=0), "depth: must be at least 1, got 0"),
        (refused("auglocal", network(), batch()[0], shrink=2.0), r"shrink: must lie in 0 \.\. 1, got 2"),
        (refused("man", network(), batch()[0], momentum=-0.1), r"momentum: must lie in 0 \.\. 1, got -0\.1"),
        (refused("hpff", network(), batch()[0], patches=0), "patches: must be at least 1, got 0"),
        (refused("hpff", network(), batch()[0], cascade_weight=0.0), r"cascade_weight: must be positive, got 0\.0"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["overlap", "hpff", "dgl-mixed"])
def test_a_stretch_of_blocks_is_refused_where_error_crosses_borders(method: str):
    rule = build(method)
    with pytest.raises(ValueError, match=r"blocks: .*got range\(0, 2\)"):
        next(rule.steps(*batch(), blocks=range(0, 2)))


def test_a_block_that_draws_the_image_must_be_given_it():
    rule = build("dgl-image")
    h = rule.net.blocks[0](batch()[0]).detach()
    with pytest.raises(ValueError, match="blocks: the objective of block 1 needs the images"):
        next(rule.steps(h, batch()[1], blocks=range(1, 3)))


@pytest.mark.parametrize("method", ["greedy", "dgl", "dgl-image", "dgl-coarse", "overlap", "auglocal", "man", "hpff"])
@pytest.mark.parametrize("num_tokens", [4, 5, 7, 1])
def test_tokens_are_trained_on(method: str, num_tokens: int):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64 // 2, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1).unflatten(1, (2, 32)))[:, torch.arange(num_tokens) % 2]

    hidden = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in range(2)]
    last = nn.Sequential(nn.Flatten(), nn.Linear(6 * num_tokens, CLASSES))
    net = localprop.LocalNetwork([Tokens(), *hidden, last])
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=batch()[0])
    for step in LocalExecutor(rule, adamw).step(0, *batch()):
        assert bool(step.loss.isfinite())
