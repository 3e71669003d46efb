"""The same code on an accelerator: no device is named, and within a step the host waits for nothing.

`meta` stands in for the accelerator that the machine may not have: it refuses what is on another device, and whatever
has to read a number. A copy to it that would have to wait is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from localprop.data import Augmentation
from localprop.data.augment import augment, cut_out
from localprop.data.loader import normalise
from localprop.train.executor import LocalExecutor
from localprop.train.phases import inputs_of, step_in
from localprop.types import BlockStep
from tests.traits import suits, traits
from tests.unit.test_conformance import METHODS, NETWORKS, adamw, batch_for, build

aten = torch.ops.aten
STEPPED = [method for method in METHODS if traits(method).takes_steps]


class WaitingCopies(TorchDispatchMode):
    """Collect the copies from the host to a device that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            waits = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
            if waits and source.device.type == "cpu" and out.device.type != "cpu":
                self.found.append(f"{func} of {tuple(source.shape)}")
        return out


def network_of(method: str) -> str:
    return next(name for name in ("conv-1x28", "patches-1x28", "fc-1x28") if suits(method, name))


def second_steps(device: str, method: str) -> Iterator[list[BlockStep] | None]:
    """Do two steps of every phase; yield None before the second (the first may build what it uses), then its answer."""
    network = NETWORKS[network_of(method)]
    rule = build(method, network, dropout=0.1).to(device).train()
    executor = LocalExecutor(rule, adamw)
    x, y = (part.to(device) for part in batch_for(network))
    for number, phase in enumerate(rule.phases()):
        if phase.fraction:
            h = inputs_of(phase, rule, x)
            step_in(phase, executor, 2 * number, h, y)
            yield None
            yield step_in(phase, executor, 2 * number + 1, h, y)


@pytest.mark.parametrize("method", STEPPED)
def test_a_step_names_no_device_and_waits_for_none(method: str):
    with WaitingCopies() as copies:
        for steps in second_steps("meta", method):
            if steps is None:
                copies.found.clear()
            else:
                assert all(step.loss is None or step.loss.device.type == "meta" for step in steps)
                assert copies.found == []


def test_making_a_batch_waits_for_no_device():
    images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta")
    with WaitingCopies() as copies:
        made = augment(images, Augmentation(crop_padding=4, flip=True), seed=0)
        cut_out(normalise(made, (0.5,) * 3, (0.25,) * 3), 8, seed=0)
    assert copies.found == []


def test_a_copy_that_waits_and_a_number_that_is_read_are_found():
    device_tensor = torch.zeros(3, device="meta")
    with WaitingCopies() as copies:
        torch.zeros(3).to("meta")
        device_tensor.copy_(torch.zeros(3))
        torch.zeros(3).to("meta", non_blocking=True)
        device_tensor.copy_(torch.zeros(3), non_blocking=True)
    assert len(copies.found) == 2
    with pytest.raises(RuntimeError):
        float(device_tensor.sum())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", STEPPED)
def test_a_step_on_a_gpu_waits_for_nothing(method: str):
    try:
        for steps in second_steps("cuda", method):
            torch.cuda.set_sync_debug_mode("error" if steps is None else "default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
