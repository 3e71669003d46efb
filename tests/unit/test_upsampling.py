"""A convolution of resized maps: the same numbers as the two layers, for less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from localprop.functional.upsampling import convolve_upsampled, upsample
from localprop.objectives import Reconstruction
from localprop.types import BlockSpec

SIZES = {
    "mixed first": (40, (4, 3), (9, 12)),
    "one position": (5, (1, 1), (6, 7)),
    "one axis": (60, (2, 8), (8, 8)),
    "few channels": (2, (6, 5), (8, 9)),
    "the same size": (4, (5, 6), (5, 6)),
    "a smaller image": (3, (8, 4), (3, 5)),
}
Case = tuple[int, tuple[int, int], tuple[int, int]]


def by_layers(h: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(h, size, mode="bilinear", align_corners=True)
    return F.conv2d(resized, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def tensors(case: Case, kernel: tuple[int, int]) -> list[Tensor]:
    channels, small, _ = case
    shapes = (2, channels, *small), (7, channels, *kernel), (7,)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_are_those_of_the_layers(
    case: Case, memory_format: torch.memory_format, kernel: tuple[int, int]
):
    inputs = tensors(case, kernel)
    results = []
    for function in (convolve_upsampled, by_layers):
        h, weight, bias = inputs
        out = function(h.contiguous(memory_format=memory_format), weight, bias, case[2])
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def multiplications(function, case: Case) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*tensors(case, (3, 3)), case[2])
    return counter.get_total_flops()


@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
def test_it_never_multiplies_more_than_the_layers(case: Case):
    assert multiplications(convolve_upsampled, case) <= multiplications(by_layers, case)


def test_late_blocks_of_vgg8b_are_drawn_from_for_a_twentieth():
    case = 512, (4, 4), (32, 32)
    assert 20 * multiplications(convolve_upsampled, case) < multiplications(by_layers, case)


def test_the_resized_map_is_not_kept():
    spec = BlockSpec(0, 2, "block", (3, 32, 32), (128, 4, 4), 0, 1, 10, (128, 4, 4))
    kept = []
    h = torch.randn(2, 128, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        Reconstruction(spec, (3, 32, 32)).reconstruct(h)
    assert max(kept) < 2 * 128 * 32 * 32 / 4


def test_half_precision_rounds_like_the_layers():
    h, weight, bias = (tensor.detach().float() for tensor in tensors(SIZES["mixed first"], (3, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        ours, layers = (function(h, weight, bias, (9, 12)) for function in (convolve_upsampled, by_layers))
    exact = by_layers(h, weight, bias, (9, 12))
    assert ours.isfinite().all()
    assert (ours - exact).norm() < 2 * (layers - exact).norm() + 0.01 * exact.norm()


def test_a_map_of_the_images_size_is_not_resized():
    h = torch.randn(2, 3, 4, 5)
    assert upsample(h, (4, 5)) is h
    assert upsample(h, (8, 9))[..., [0, 0, -1, -1], [0, -1, 0, -1]].equal(h[..., [0, 0, -1, -1], [0, -1, 0, -1]])
