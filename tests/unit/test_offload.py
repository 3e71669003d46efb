"""Optimisers whose state lives in host memory."""

import copy

import pytest
import torch
from torch import nn

from localprop import methods, models
from localprop.train.executor import LocalExecutor
from localprop.train.offload import OffloadedState

OPTIMIZERS = {
    "AdamW": lambda group: torch.optim.AdamW(group, lr=0.1),
    "fused AdamW": lambda group: torch.optim.AdamW(group, lr=0.1, fused=True),
    "SGD": lambda group: torch.optim.SGD(group, lr=0.1, momentum=0.9),
    "Adafactor": lambda group: torch.optim.Adafactor(group, lr=0.1),
    "stateless": lambda group: torch.optim.SGD(group, lr=0.1),
}


def train(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for number in range(steps):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number)).to(layer.weight.device)
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_and_stored_state_are_those_of_the_optimiser_alone(name: str):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    other = copy.deepcopy(layer)
    plain, moved = OPTIMIZERS[name](layer.parameters()), OPTIMIZERS[name](other.parameters())
    OffloadedState(moved, pin=False)
    train(layer, plain, 2)
    train(other, moved, 2)
    resumed = OPTIMIZERS[name](other.parameters())
    OffloadedState(resumed, pin=False)
    resumed.load_state_dict(copy.deepcopy(moved.state_dict()))
    train(layer, plain, 2)
    train(other, resumed, 2)
    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert str(plain.state_dict()) == str(resumed.state_dict())


def test_each_part_of_the_state_keeps_its_place_in_host_memory():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    OffloadedState(optimizer, pin=False)
    train(layer, optimizer, 1)
    places = [optimizer.state[layer.weight][name].data_ptr() for name in ("exp_avg", "exp_avg_sq")]
    train(layer, optimizer, 2)
    assert places == [optimizer.state[layer.weight][name].data_ptr() for name in ("exp_avg", "exp_avg_sq")]


def test_on_a_cpu_it_is_refused():
    x = torch.zeros(2, 1, 28, 28)
    rule = methods.build("dcl", models.fc((1, 28, 28), 10, width=12), num_classes=10, example=x)
    with pytest.raises(
        ValueError, match="offload_optimizer: on a CPU the optimisers' state is in host memory as it is"
    ):
        LocalExecutor(rule, OPTIMIZERS["AdamW"], offload_optimizer=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_state_is_gone_between_steps():
    x, y = torch.rand(8, 1, 28, 28, device="cuda"), torch.arange(8, device="cuda")
    found = []
    for offload in (False, True):
        torch.manual_seed(0)
        net = models.fc((1, 28, 28), 10, width=256)
        rule = methods.build("dcl", net, num_classes=10, example=x.cpu()).cuda().train()
        before = torch.cuda.memory_allocated()
        executor = LocalExecutor(rule, OPTIMIZERS["fused AdamW"], offload_optimizer=offload)
        for number in range(3):
            executor.step(number, x, y)
        grown = torch.cuda.memory_allocated() - before
        state = executor.state_dict()
        executor.load_state_dict(state)
        executor.step(3, x, y)
        found.append((grown, [parameter.cpu() for parameter in rule.parameters()]))
    (kept, expected), (gone, parameters) = found
    weights = sum(parameter.numel() * 4 for parameter in expected)
    assert kept > 1.9 * weights
    assert gone < 0.1 * weights
    assert all(torch.equal(one, two) for one, two in zip(parameters, expected, strict=True))
