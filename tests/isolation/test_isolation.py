"""What makes a method local: one block's gradients, one block's graph, nothing left behind."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.models.parts import FlatBlock
from localprop.network import body_and_tail
from localprop.types import LocalBatch, Normalisation
from tests.traits import accepting, block_by_block, traits

LOCAL = block_by_block()
SHARING = ["dcl", "dcl-cosine"]
"""Methods whose dictionary stands in the groups of several blocks."""
AVERAGED = {"dcl-averaged": (None, "shared")}
"""Methods with a group whose gradient gathers over the pass."""
CLASSES = 3


def network(dropout: float = 0.0) -> localprop.LocalNetwork:
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout2d(dropout)),
            nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Dropout2d(dropout)),
            FlatBlock(nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Dropout(dropout), feature_chunks=2),
            nn.Linear(12, CLASSES),
        ]
    )


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def build(method: str, dropout: float = 0.0) -> localprop.Rule:
    torch.manual_seed(0)
    rule = localprop.methods.build(method, network(dropout), num_classes=CLASSES, example=batch()[0])
    rule.normalisation = Normalisation((0.5,), (0.05,))
    return rule


def optimizers_of(rule: localprop.Rule, make: Callable[..., torch.optim.Optimizer] | None = None) -> dict:
    make = make or (lambda group: torch.optim.AdamW(group, lr=0.01))
    return {key: make(group) for key, group in rule.parameter_groups().items()}


def stepped(rule: localprop.Rule, optimizers: dict, **settings: object) -> Iterator[localprop.BlockStep]:
    """Yield the rule's steps, and step the group's optimiser after each."""
    for step in rule.steps(*batch(), **settings):
        yield step
        optimizers[step.key].step()
        optimizers[step.key].zero_grad(set_to_none=True)


def gathering(rule: localprop.Rule, method: str) -> set[nn.Parameter]:
    return set(rule.parameter_groups()[AVERAGED[method]]) if method in AVERAGED else set()


@pytest.mark.parametrize("method", LOCAL)
def test_only_the_yielded_group_has_gradients(method: str):
    rule = build(method)
    groups, gathered = rule.parameter_groups(), gathering(rule, method)
    keys = []
    for step in stepped(rule, optimizers_of(rule)):
        keys.append(step.key)
        with_gradient = {p for p in rule.parameters() if p.grad is not None}
        assert with_gradient - gathered == set(groups[step.key]) - gathered
        assert gathered <= with_gradient
    assert keys == list(groups)


@pytest.mark.parametrize("method", [name for name in LOCAL if name not in SHARING])
def test_later_blocks_leave_earlier_gradients_alone(method: str):
    """The next test's error keeps the methods that share parameters from this use."""
    rule = build(method)
    groups, gathered, earlier = rule.parameter_groups(), gathering(rule, method), {}
    for step in rule.steps(*batch()):
        for parameter, gradient in earlier.items():
            assert torch.equal(parameter.grad, gradient)
        assert all(p.grad is None for p in rule.parameters() if p not in {*earlier, *groups[step.key], *gathered})
        earlier |= {p: p.grad.clone() for p in groups[step.key]}


@pytest.mark.parametrize("method", SHARING)
def test_a_shared_gradient_that_is_still_there_is_refused(method: str):
    rule = build(method)
    steps = rule.steps(*batch())
    next(steps)
    with pytest.raises(ValueError, match="zero_grad"):
        next(steps)
    assert all(p.grad is None for p in rule.parameters())


@pytest.mark.parametrize("method", accepting("isolation"))
def test_what_is_yielded_has_no_graph(method: str):
    rule = build(method)
    for step in stepped(rule, optimizers_of(rule)):
        for tensor in (step.loss, step.logits, step.output, *step.logs.values()):
            assert tensor is None or (tensor.grad_fn is None and not tensor.requires_grad)


class SavedBytes:
    """Count the bytes that autograd keeps for backward passes."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    class _Packed:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()

    def _pack(self, tensor: Tensor) -> SavedBytes._Packed:
        packed = self._Packed(tensor)
        self.now += tensor.nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(packed, self._free, tensor.nbytes)
        return packed

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.tensor)


def test_the_counter_sees_a_graph_and_its_end():
    saved = SavedBytes()
    with saved.hooks():
        x = torch.randn(5, requires_grad=True)
        loss = (x * x).sum()
        assert saved.now == 40
        loss.backward()
    assert (saved.now, saved.peak) == (0, 40)


@pytest.mark.parametrize("method", LOCAL)
def test_one_blocks_graph_is_alive_at_a_time(method: str):
    rule = build(method, dropout=0.1)
    own = []
    for index, x, h, _ in rule.net.iter_blocks(batch()[0]):
        alone = SavedBytes()
        with alone.hooks():
            block, objective = rule.net.blocks[index], rule.objectives[index]
            body = body_and_tail(block)[0] if objective.reads == "activation" else block
            objective(body(x), LocalBatch(batch()[1], x, rule.image(batch()[0]))).loss.backward()
        own.append(alone.peak)
        del h
    rule.clear_gradients()

    saved, peaks = SavedBytes(), []
    with saved.hooks():
        for _ in stepped(rule, optimizers_of(rule)):
            assert saved.now == 0
            peaks.append(saved.peak)
            saved.peak = 0
    assert saved.now == 0
    assert min(own) > 0
    assert all(peak <= of_block for peak, of_block in zip(peaks, own, strict=False))
    assert max(peaks) <= max(own)
    if traits(method).graph_of_block:
        assert peaks[: len(own)] == own
        assert max(peaks) == max(own)


def entrance(block: nn.Module) -> nn.Module:
    """Return the first module of a block: a rule that reads the block's activation does not call the block itself."""
    return next(block.children(), block)


@pytest.mark.parametrize("method", LOCAL)
def test_a_blocks_graph_is_gone_before_the_next_block_runs(method: str):
    rule = build(method)
    outputs: list[weakref.ref] = []
    alive = []
    for block in map(entrance, rule.net.blocks):
        block.register_forward_pre_hook(lambda module, args: alive.append([o() is not None for o in outputs]))
        block.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    list(stepped(rule, optimizers_of(rule)))
    assert alive == [[False] * i for i in range(len(rule.net))]


@pytest.mark.parametrize("method", LOCAL)
def test_no_gradient_reaches_the_input(method: str):
    rule = build(method)
    x, y = batch()
    x.requires_grad_()
    for _ in rule.steps(x, y):
        assert x.grad is None
        rule.clear_gradients()


def test_backprop_holds_more_than_any_block():
    peaks = {}
    for method in ("bp", "dcl"):
        rule, saved = build(method), SavedBytes()
        with saved.hooks():
            for _ in stepped(rule, optimizers_of(rule)):
                assert saved.now == 0
        peaks[method] = saved.peak
    assert peaks["bp"] > 1.2 * peaks["dcl"]


@pytest.mark.parametrize("method", LOCAL)
def test_activations_sent_on_are_those_from_before_the_update(method: str):
    rule = build(method)
    before = copy.deepcopy(rule.net)
    expected, h = [], batch()[0]
    with torch.no_grad():
        for block in before.blocks:
            expected.append(h)
            h = block(h)
    expected.append(h)
    seen: dict[int, Tensor] = {}
    handles = [
        entrance(block).register_forward_pre_hook(lambda module, args, i=i: seen.update({i: args[0].clone()}))
        for i, block in enumerate(rule.net.blocks)
    ]
    for step in stepped(rule, optimizers_of(rule, lambda group: torch.optim.SGD(group, lr=1.0))):
        if step.key[0] is not None:
            assert torch.equal(seen[step.key[0]], expected[step.key[0]])
            assert torch.equal(step.output, expected[step.key[0] + 1])
    for handle in handles:
        handle.remove()
    assert len(seen) == len(before)
    assert not torch.equal(rule.net(batch()[0]), h)  # the update was large enough to be seen


@pytest.mark.parametrize(
    "method", [name for name in LOCAL if name not in (*SHARING, *AVERAGED) and not traits(name).needs_image]
)
def test_a_stretch_of_blocks_does_what_the_whole_pass_does(method: str):
    whole, parts = build(method, dropout=0.2), build(method, dropout=0.2)
    x, y = batch()
    steps = list(whole.steps(x, y))
    first = list(parts.steps(x, y, blocks=range(0, 2)))
    parts.begin(0)
    second = list(parts.steps(first[-1].output, y, blocks=range(2, 4)))
    assert [s.key for s in [*first, *second]] == [s.key for s in steps]
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("method", [name for name in LOCAL if traits(name).needs_image])
def test_a_stretch_that_lacks_the_image_it_needs_is_refused(method: str):
    rule = build(method)
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    h = torch.randn(6, 4, 8, 8)
    with pytest.raises(ValueError, match="block 1 needs the images, which the input of block 1 is not; start at block"):
        next(iter(rule.steps(h, batch()[1], blocks=range(1, 4))))
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())
    last = list(rule.steps(torch.randn(6, 12), batch()[1], blocks=range(3, 4)))
    assert [step.key for step in last] == [(3, "block")]


def test_dcl_s_never_moves_its_dictionary():
    rule = build("dcl-s")
    dictionary = rule.objectives[0].dictionary.embeddings
    before = dictionary.clone()
    optimizers = optimizers_of(rule, lambda group: torch.optim.AdamW(group, lr=0.1, weight_decay=0.5))
    for _ in range(3):
        list(stepped(rule, optimizers))
    assert not dictionary.requires_grad
    assert all(p is not dictionary for p in rule.parameters())
    assert torch.equal(rule.objectives[0].dictionary.embeddings, before)


def test_the_last_hidden_block_alone_owns_the_dictionary_of_dcl_o():
    rule = build("dcl-o")
    dictionary = rule.objectives[0].dictionary.embeddings
    owners = [key for key, group in rule.parameter_groups().items() if any(p is dictionary for p in group)]
    assert owners == [(2, "block")]
    for step in stepped(rule, optimizers_of(rule)):
        assert (dictionary.grad is not None) == (step.key == (2, "block"))


def test_every_block_of_dcl_ld_owns_its_dictionary():
    rule = build("dcl-ld")
    dictionaries = [objective.dictionary.embeddings for objective in rule.objectives[:-1]]
    assert [d.shape[1] for d in dictionaries] == [4, 8, 6]
    for key, group in rule.parameter_groups().items():
        assert [i for i, d in enumerate(dictionaries) if any(p is d for p in group)] == ([key[0]] if key[0] < 3 else [])


def assert_clean(rule: localprop.Rule) -> None:
    assert all(p.grad is None for p in rule.parameters())
    for module in rule.modules():
        for name, hooks in vars(module).items():
            assert "_hooks" not in name or not hooks, (module, name)
    for parameter in rule.parameters():
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks


@pytest.mark.parametrize("method", accepting("isolation", steps=True))
@pytest.mark.parametrize("how", ["close", "throw"])
def test_an_abandoned_pass_leaves_nothing(method: str, how: str):
    rule, state = build(method, dropout=0.1), torch.get_rng_state()
    optimizers = optimizers_of(rule)
    steps = rule.steps(*batch())
    step = next(steps)
    if traits(method).block_by_block and method != "feat":
        optimizers[step.key].step()
        optimizers[step.key].zero_grad(set_to_none=True)
        next(steps)
    if how == "close":
        steps.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)
    assert_clean(rule)
    assert torch.equal(torch.get_rng_state(), state)
    assert {step.key for step in stepped(rule, optimizers)} == set(optimizers)


@pytest.mark.parametrize("method", accepting("isolation", steps=True))
def test_an_exception_inside_a_block_leaves_nothing(method: str):
    rule = build(method, dropout=0.1)
    rule.autocast_dtype = torch.bfloat16
    optimizers = optimizers_of(rule)
    state = torch.get_rng_state()

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    block = rule.net.blocks[min(2, len(rule.net) - 1)]
    flatten, block[0] = block[0], Broken()
    with pytest.raises(RuntimeError, match="broken"):
        list(stepped(rule, optimizers))
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert_clean(rule)
    block[0] = flatten
    assert {step.key for step in stepped(rule, optimizers)} == set(optimizers)


@pytest.mark.parametrize("method", accepting("isolation"))
def test_a_whole_pass_leaves_no_gradients_and_no_hooks(method: str):
    rule = build(method)
    list(stepped(rule, optimizers_of(rule)))
    assert_clean(rule)


@pytest.mark.parametrize("method", accepting("isolation"))
def test_the_caller_never_runs_inside_the_rules_contexts(method: str):
    rule = build(method, dropout=0.5)
    rule.autocast_dtype = torch.bfloat16
    optimizers = optimizers_of(rule)
    torch.manual_seed(5)
    drawn = []
    for _ in stepped(rule, optimizers):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        drawn.append(torch.rand(3))
    rule.exits(batch()[0])
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    drawn.append(torch.rand(3))
    torch.manual_seed(5)
    assert all(torch.equal(found, torch.rand(3)) for found in drawn)
