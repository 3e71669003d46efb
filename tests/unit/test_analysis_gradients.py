import pytest
import torch
from torch import nn

import localprop
from localprop.analysis.filters import filter_images, first_layer
from localprop.analysis.gradients import compare_gradients, gradient_cosine


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(12, 12), nn.ReLU()),
        nn.Linear(12, 3),
    )


def built(method: str) -> tuple[localprop.Rule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    rule = localprop.methods.build(method, localprop.split(network()), num_classes=3, example=x)
    return rule, x, y


def test_gradient_cosine__is_that_of_the_vectors() -> None:
    first = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert gradient_cosine(first, first) == pytest.approx(1)
    assert gradient_cosine(first, [-2 * first[0], -2 * first[1]]) == pytest.approx(-1)
    assert gradient_cosine(first, [None, torch.tensor([[1.0]])]) == pytest.approx(0.8)
    assert gradient_cosine(first, [None, None]) is None
    with pytest.raises(ValueError, match="same parameters"):
        gradient_cosine(first, first[:1])
    with pytest.raises(ValueError, match="shapes must agree"):
        gradient_cosine(first, first[::-1])


def test_compare_gradients__the_last_block_of_a_local_method_has_backprop_s_gradient() -> None:
    found = compare_gradients(*built("dcl"))
    assert found[-1] == (pytest.approx(1), pytest.approx(1))
    assert all(cosine is not None and abs(cosine) < 0.999 for cosine, _ in found[:-1])


def test_compare_gradients__of_backprop_are_one_everywhere() -> None:
    found = compare_gradients(*built("bp"))
    assert all(cosine == pytest.approx(1) for cosine, _ in found)
    assert all(ratio == pytest.approx(1) for _, ratio in found)


def test_compare_gradients__of_feedback_with_the_weights_own_signs_go_the_same_way() -> None:
    torch.manual_seed(0)
    signs = compare_gradients(*built("usf"))
    assert all(cosine > 0.3 for cosine, _ in signs)


@pytest.mark.parametrize("method", ["dcl", "pred", "fa", "dni", "simclr-local"])
def test_compare_gradients__changes_nothing(method: str) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(8, 3, 8, 8), torch.randint(3, (8,))
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 3),
    )
    rule = localprop.methods.build(method, localprop.split(model), num_classes=3, example=x).eval()
    before = {key: value.clone() for key, value in rule.state_dict().items()}
    assert len(compare_gradients(rule, x, y)) == len(rule.net)
    assert not rule.training
    assert all(torch.equal(value, before[key]) for key, value in rule.state_dict().items())
    assert all(parameter.grad is None for parameter in rule.parameters())


def test_filters__are_shown_around_grey() -> None:
    weight = torch.zeros(3, 1, 2, 2)
    weight[0, 0, 0, 0], weight[0, 0, 1, 1], weight[1, 0, 0, 1] = 2.0, -1.0, -4.0
    found = filter_images(weight)
    assert found[0, 0].tolist() == [[1, 0.5], [0.5, 0.25]]
    assert found[1, 0].tolist() == [[0.5, 0], [0.5, 0.5]]
    assert found[2].unique().tolist() == [0.5]


def test_filters__are_those_of_the_layer_that_reads_the_image() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert first_layer(convolution, (3, 8, 8))[1].shape == (8, 3, 3, 3)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    name, weight = first_layer(flat, (3, 8, 8))
    assert (name, weight.shape) == ("1", (5, 3, 8, 8))


@pytest.mark.parametrize("network", [nn.Conv2d(3, 8, 1), nn.Linear(7, 5), nn.ReLU()])
def test_filters__that_are_no_images_are_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="no images"):
        first_layer(network, (3, 8, 8))
