"""Fused chains of layers against the layers themselves, and which layers are fused."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional.convolution import Convolution, MaxPool
from localprop.functional.fused import conv_norm_relu_pool, norm_linear
from localprop.fusing import run_fused

POOLS = {
    "none": None,
    "2": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, stride=2, padding=1),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "dilated": nn.MaxPool2d((2, 3), stride=(1, 2), dilation=(2, 1)),
}
CONVS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "bias": False},
    "grouped": {"kernel_size": 3, "groups": 2, "dilation": 2, "padding": 2},
}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def chain(conv: str = "3x3", pool: str = "2", layout: str = "channels_last") -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, **CONVS[conv]), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU(inplace=True)]
    if (pooling := POOLS[pool]) is not None:
        layers.append(pooling)
    block = nn.Sequential(*layers).double().to(memory_format=LAYOUTS[layout])
    with torch.no_grad():
        block[1].weight.copy_(torch.tensor([1.0, -0.5, 2.0, -1.5, 0.3, -0.0]))
        block[1].bias.uniform_(-0.5, 0.5)
    x = torch.randn(5, 4, 9, 8, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    return block, x


def gradients(block: nn.Module, x: Tensor, run, *, input_grad: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(input_grad)
    h = run(block, x)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=h.dtype)
    (h * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in block.named_parameters()}
    return h.detach(), {**found, "x": x.grad} if input_grad else found


def layer_by_layer(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def used(h: Tensor) -> set[str]:
    """Names of the backward functions behind a tensor."""
    names, waiting = set(), [h.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
    return names


@pytest.mark.parametrize(("conv", "pool", "layout"), list(itertools.product(CONVS, POOLS, LAYOUTS)))
@pytest.mark.parametrize("input_grad", [False, True])
def test_a_fused_convolution_is_its_layers(conv: str, pool: str, layout: str, input_grad: bool):
    block, x = chain(conv, pool, layout)
    other = copy.deepcopy(block)
    h, found = gradients(block, x, run_fused, input_grad=input_grad)
    expected, wanted = gradients(other, x, layer_by_layer, input_grad=input_grad)
    torch.testing.assert_close(h, expected, rtol=1e-9, atol=1e-12)
    for name, gradient in wanted.items():
        kept = slice(0, 5) if name == "1.weight" and pool != "none" else slice(None)  # a gain of 0 makes ties
        torch.testing.assert_close(found[name][kept], gradient[kept], rtol=1e-9, atol=1e-12, msg=name)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(block.get_buffer(name), buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_the_fused_functions_pass_gradcheck():
    torch.manual_seed(0)
    args = [torch.randn(3, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(3), torch.randn(3), torch.randn(3)]
    args = [tensor.double().requires_grad_() for tensor in args]
    convolution = Convolution((1, 1), (1, 1), (1, 1), 1)
    for pool in (None, MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False)):

        def conv(*args: Tensor, pool=pool) -> Tensor:
            return conv_norm_relu_pool(*args, eps=1e-3, convolution=convolution, pool=pool)[0]

        assert torch.autograd.gradcheck(conv, args)
    x = torch.randn(5, 4).double()
    args = [tensor.double().requires_grad_() for tensor in (torch.randn(4), torch.randn(4), torch.randn(3, 4))]
    assert torch.autograd.gradcheck(lambda *args: norm_linear(x, *args, eps=1e-3), args)
    bias = torch.randn(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: norm_linear(x, *args, eps=1e-3), [*args, bias])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_maxima_get_their_gradient_once(layout: str):
    """Images with a black border have windows of equal values; the first of them is the maximum."""
    block, x = chain(layout=layout)
    x[:, :, :5] = 0.0
    other = copy.deepcopy(block)
    _, found = gradients(block, x, run_fused, input_grad=True)
    _, wanted = gradients(other, x, layer_by_layer, input_grad=True)
    for name in ("0.weight", "1.bias"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["x"].sum(), wanted["x"].sum(), rtol=1e-6, atol=1e-9)


def test_a_second_backward_pass_gives_the_same_gradients():
    block, x = chain()
    h = run_fused(block, x)
    first = torch.autograd.grad(h.sum(), list(block.parameters()), retain_graph=True)
    second = torch.autograd.grad(h.sum(), list(block.parameters()))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_no_gradient_of_a_gradient_is_made_up():
    block, x = chain()
    (gradient,) = torch.autograd.grad(run_fused(block, x).pow(2).sum(), block[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_norm_and_linear_layer_is_its_layers(bias: bool):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 7, bias=bias), nn.ReLU()).double()
    nn.init.normal_(block[1].weight)
    nn.init.normal_(block[1].bias)
    other, x = copy.deepcopy(block), torch.randn(5, 3, 4).double()
    h, found = gradients(block, x, run_fused)
    expected, wanted = gradients(other, x, layer_by_layer)
    assert "_NormLinearBackward" in used(run_fused(block, x))
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_an_input_that_needs_a_gradient_gets_it_from_the_layers():
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(3, 4, requires_grad=True)
    run_fused(block, x).sum().backward()
    assert x.grad is not None
    with pytest.raises(ValueError, match="x: its gradient is not computed"):
        norm_linear(x, *block[0].parameters(), *block[1].parameters(), eps=1e-5)


def test_chains_are_found_inside_nested_blocks_and_the_rest_runs_as_it_is():
    block, x = chain()
    nested = nn.Sequential(nn.Sequential(*block), nn.Dropout2d(0.5), nn.Flatten())
    names = used(run_fused(nested, x))
    assert "_ConvNormReluPoolBackward" in names
    assert "NativeBatchNormBackward0" not in names
    assert "FeatureDropoutBackward0" in names or "MulBackward0" in names


class OwnConvolution(nn.Conv2d):
    """May compute anything."""


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.eval(),
        lambda block: block[0].register_forward_hook(lambda *_: None),
        lambda block: block[1].register_forward_pre_hook(lambda *_: None),
        lambda block: block.register_forward_pre_hook(lambda *_: None),
        lambda block: block.__setitem__(0, OwnConvolution(4, 6, 3).double()),
        lambda block: block.__setitem__(0, nn.Conv2d(4, 6, 3, padding="same").double()),
        lambda block: block.__setitem__(0, nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect").double()),
        lambda block: block.__setitem__(1, nn.BatchNorm2d(6, affine=False).double()),
        lambda block: block.__setitem__(1, nn.BatchNorm2d(6, momentum=None).double()),
        lambda block: block.__setitem__(2, nn.LeakyReLU()),
        lambda block: nn.utils.parametrizations.weight_norm(block[0]),
    ],
)
def test_layers_that_the_functions_do_not_know_run_by_themselves(change):
    block, x = chain()
    change(block)
    other = copy.deepcopy(block)
    h = run_fused(block, x)
    assert "_ConvNormReluPoolBackward" not in used(h)
    assert torch.equal(h, other(x))


def test_nothing_is_fused_without_gradients():
    block, x = chain()
    other = copy.deepcopy(block)
    with torch.no_grad():
        assert torch.equal(run_fused(block, x), other(x))


HALVES = [torch.bfloat16, torch.float16]
OVERLAPPING = ("overlapping", "dilated")


@pytest.mark.parametrize(
    ("conv", "pool", "layout", "half"),
    [
        *itertools.product(CONVS, POOLS, LAYOUTS, HALVES[:1]),
        *itertools.product(["3x3"], ["none", "2"], LAYOUTS, HALVES[1:]),
    ],
)
def test_under_autocast_a_chain_is_its_layers_up_to_rounding(conv: str, pool: str, layout: str, half: torch.dtype):
    block, x = chain(conv, pool, layout)
    block, x = block.float(), x.float()
    nn.init.constant_(block[0].bias, 0.5) if block[0].bias is not None else None
    other = copy.deepcopy(block)
    with torch.autocast("cpu", half):
        h, expected = run_fused(block, x), other(x)
    assert h.dtype == expected.dtype == half
    assert ("_ConvNormReluPoolInHalfBackward" in used(h)) == (pool not in OVERLAPPING)
    torch.testing.assert_close(h, expected, rtol=0.05, atol=0.05)
    for out in (h, expected):
        (out.float() ** 2).sum().backward()
    for (name, one), two in zip(block.named_parameters(), other.parameters(), strict=True):
        if name == "0.bias":  # rounding noise around zero in the layers
            assert not one.grad.any()
        else:
            # With eight digits many entries of a pooling window tie, and another rounding chooses another of them.
            assert torch.linalg.norm(one.grad - two.grad) < 0.3 * torch.linalg.norm(two.grad) + 0.05, name
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(block.get_buffer(name), buffer, rtol=0.01, atol=0.01, msg=name)


@pytest.mark.parametrize("pool", ["none", "2", "ceil"])
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_gradients_under_autocast_are_those_of_exact_sums(pool: str, half: torch.dtype):
    """Given the rounded output of the convolution, every gradient is that of layers in double precision, rounded once.

    A sum over many positions shows a rounding error that has the same sign everywhere. That of one rounding is 0.25 %
    in bfloat16; the layers make 2.5 % where they pool.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    block = nn.Sequential(*layers, *([POOLS[pool]] if POOLS[pool] is not None else []))
    block = block.to(memory_format=torch.channels_last)
    nn.init.normal_(block[1].weight)
    x = torch.randn(64, 8, 16, 16).relu().to(half).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", half):
        h = run_fused(block, x)
        y = nn.functional.conv2d(x, block[0].weight, padding=1).detach().double().requires_grad_()
    above = (torch.randn(h.shape) / 100).to(half)
    h.backward(above)
    exact = copy.deepcopy(block).double()
    exact[1:](y).backward(above.double())
    weight = block[0].weight.detach().to(half).double()
    wanted = {
        "0.weight": nn.grad.conv2d_weight(x.detach().double(), weight.shape, y.grad, padding=1),
        "1.weight": exact[1].weight.grad,
        "1.bias": exact[1].bias.grad,
        "x": nn.grad.conv2d_input(x.shape, weight, y.grad, padding=1),
    }
    found = {name: parameter.grad for name, parameter in block.named_parameters()} | {"x": x.grad}
    for name, gradient in wanted.items():
        error = torch.linalg.norm(found[name].double() - gradient) / torch.linalg.norm(gradient)
        assert error < 0.005, (name, float(error))


@pytest.mark.parametrize("pool", ["none", "2"])
def test_nan_under_autocast_stays_nan(pool: str):
    block, x = chain(pool=pool)
    block, x = block.float(), x.float()
    x[0, 0, 0, 0] = -torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        assert run_fused(block, x).isnan().all()
    block, x = chain(pool=pool)
    block, x = block.float(), x.float()
    with torch.no_grad():
        block[1].bias[2] = -torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        h = run_fused(block, x)
    assert h[:, 2].isnan().all()
    assert h[:, 3].isfinite().all()
    block[1].eps = 0.0
    with torch.autocast("cpu", torch.bfloat16):  # 0 times infinity, made of finite numbers
        assert run_fused(block, torch.zeros_like(x)).isnan().all()


@pytest.mark.parametrize("pool", ["none", "2"])
def test_a_second_backward_pass_under_autocast_gives_the_same_gradients(pool: str):
    block, x = chain(pool=pool)
    block = block.float()
    with torch.autocast("cpu", torch.bfloat16):
        h = run_fused(block, x.float())
    first = torch.autograd.grad(h.float().sum(), list(block.parameters()), retain_graph=True)
    second = torch.autograd.grad(h.float().sum(), list(block.parameters()))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("weights", [torch.float64, torch.bfloat16], ids=str)
def test_under_autocast_weights_of_other_precisions_run_layer_by_layer(weights: torch.dtype):
    block, x = chain()
    with torch.autocast("cpu", torch.bfloat16):
        try:
            expected = copy.deepcopy(block).to(weights)(x.to(weights))
        except RuntimeError as refused:
            with pytest.raises(RuntimeError, match=str(refused)[:20]):
                run_fused(block.to(weights), x.to(weights))
        else:
            h = run_fused(block.to(weights), x.to(weights))
            assert "_ConvNormReluPoolInHalfBackward" not in used(h)
            torch.testing.assert_close(h, expected, rtol=0.05, atol=0.05)


def test_a_network_in_half_precision_runs_layer_by_layer():
    block, x = chain()
    block, x = block.bfloat16(), x.bfloat16()
    other = copy.deepcopy(block)
    h = run_fused(block, x)
    assert "_ConvNormReluPoolBackward" not in used(h)
    assert torch.equal(h, other(x))


def test_statistics_stand_still_where_they_are_switched_off():
    block, x = chain()
    block[1].track_running_stats = False
    run_fused(block, x)
    assert block[1].num_batches_tracked == 0
    assert torch.equal(block[1].running_mean, torch.zeros(6, dtype=torch.float64))


def test_one_value_a_channel_is_refused_as_by_the_layer():
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_fused(block, torch.randn(1, 1, 3, 3))


def test_frozen_layers_get_no_gradient():
    block, x = chain()
    block[0].requires_grad_(False)
    gradients(block, x, run_fused)
    assert block[0].weight.grad is None
    assert block[1].weight.grad is not None


def test_dcl_fuses_the_blocks_of_vgg8b():
    net = localprop.models.vgg8b((1, 28, 28), 10, width=0.125)
    x = torch.randn(4, 1, 28, 28)
    names = [used(done.h) for done in net.iter_blocks(x)]
    assert all("_ConvNormReluPoolBackward" in name for name in names[:6])
