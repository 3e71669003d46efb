import math

import pytest
import torch
from torch import nn

import localprop
from localprop.analysis.subject import block_features, block_outputs, label_weights, plain
from localprop.functional.pooling import averaged_output
from localprop.objectives import DictionaryContrast


def built(method: str = "dcl", **settings: object) -> tuple[localprop.Rule, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, 3),
    )
    x = torch.randn(10, 1, 8, 8)
    return localprop.methods.build(method, localprop.split(model), num_classes=3, example=x, **settings).eval(), x


def test_block_outputs__leaves_gradients_on_between_the_blocks() -> None:
    rule, x = built()
    for h in block_outputs(rule, x):
        assert torch.is_grad_enabled()
        assert not h.requires_grad


def test_block_features__are_those_of_all_batches_in_order() -> None:
    rule, x = built()
    y = torch.arange(10) % 3
    found = block_features(rule, iter([(x[:7], y[:7]), (x[7:], y[7:])]))
    with torch.no_grad():
        h = rule.net.blocks[0](x)
    torch.testing.assert_close(found.averaged[0], h.mean((2, 3)))
    torch.testing.assert_close(found.pooled[0], h.flatten(1))
    assert [tuple(h.shape) for h in found.averaged] == [(10, 4), (10, 6), (10, 3)]
    assert torch.equal(found.answers, rule.predict(x).argmax(1))
    assert torch.equal(found.target, y)
    with pytest.raises(ValueError, match="no images"):
        block_features(rule, iter([]))


def test_averaged_output__knows_where_channels_stand() -> None:
    h = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(averaged_output(h, 0), h.mean((2, 3)))
    torch.testing.assert_close(averaged_output(h, -1), h.mean((1, 2)))
    assert averaged_output(torch.randn(2, 3).bfloat16(), 0).dtype == torch.float32


@pytest.mark.parametrize("projection", ["pool", "label", "feature"])
def test_label_weights__give_the_block_s_logits_on_averaged_features(projection: str) -> None:
    rule, x = built(projection=projection)
    found = block_features(rule, iter([(x, torch.zeros(10).long())]))
    for part in rule.modules():
        if isinstance(part, DictionaryContrast):
            index = part.spec.index
            logits = found.averaged[index] @ label_weights(part).T
            torch.testing.assert_close(logits, found.logits[index])


def test_plain__is_what_json_can_hold() -> None:
    value = {"a": torch.tensor([[1.0, math.nan]]), "b": (math.inf, 2, "x", None)}
    assert plain(value) == {"a": [[1.0, None]], "b": [None, 2, "x", None]}
