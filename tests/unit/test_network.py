"""The cuts of a network: where a block ends, what is scored, what is sent on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import localprop
from localprop.network import body_and_tail
from localprop.objectives import Probe
from localprop.types import LocalBatch, Normalisation


def test_a_block_is_cut_before_its_closing_pooling_and_dropout():
    block = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten()).eval()
    x = torch.randn(2, 1, 8, 8)
    body, tail = body_and_tail(block)
    assert [type(module) for module in body] == [nn.Conv2d, nn.ReLU]
    assert torch.equal(tail(body(x)), block(x))
    whole, nothing = body_and_tail(nn.Linear(3, 3))
    assert isinstance(whole, nn.Linear)
    assert isinstance(nothing, nn.Identity)


def test_what_is_scored_at_the_activation_is_sent_on_after_the_tail():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    net = localprop.LocalNetwork([first, nn.Linear(36, 3)])
    x = torch.randn(2, 1, 8, 8)
    (_, _, h, output), (_, given, logits, _) = net.iter_blocks(x, at_activation={0})
    assert torch.equal(h, first[:2](x))
    assert h.requires_grad
    assert torch.equal(output, first(x))
    assert not output.requires_grad
    assert torch.equal(given, output)
    assert torch.equal(logits, net(x))
    spec = net.specs(x, 3)[0]
    assert (spec.shape, spec.activation_shape) == ((36,), (4, 6, 6))
    assert spec.at_activation().shape == (4, 6, 6)


def test_a_network_of_named_blocks_is_cut_anew_by_their_names():
    net = localprop.models.cnn((1, 8, 8), 3, width=0.05)
    assert localprop.split(net, at=["conv2", "hidden"]).names == ("conv2", "hidden", "classifier")
    assert localprop.split(net, at=["conv1.2"]).names == ("conv1.2", "classifier")
    inside = localprop.split(nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 3)), at=["0.0"])
    assert localprop.split(inside, at=["0"]).names == ("0", "1.1")
    with pytest.raises(ValueError, match=r"no module 'conv9' to cut after \(did you mean 'conv"):
        localprop.split(net, at=["conv9"])


@pytest.mark.parametrize("at", [[0], [None]])
def test_cuts_are_a_list_of_names(at):
    with pytest.raises(ValueError, match="at: must be a list of names"):
        localprop.split(localprop.models.cnn((1, 8, 8), 3, width=0.05), at=at)


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("second", "example", "message"),
    [
        (nn.BatchNorm2d(4), torch.zeros(2, 5), r"block '1' cannot run .* \(2, 5\): expected 4D input"),
        (Pair(4, 3), torch.zeros(2, 5), "block '1' cannot run .* 'tuple'"),
        (nn.Linear(4, 3), None, "example: need a batch of inputs as a tensor, got a NoneType"),
    ],
)
def test_an_example_that_a_block_cannot_run_on_names_the_block(second, example, message):
    with pytest.raises(ValueError, match=message):
        localprop.LocalNetwork([nn.Linear(5, 4), second]).specs(example, 3)


def test_a_rule_gives_back_the_images_that_its_inputs_were_made_of():
    x = torch.rand(2, 3, 4, 4)
    net = localprop.LocalNetwork([nn.Sequential(nn.Flatten(), nn.Linear(48, 3))])
    rule = localprop.methods.build("bp", net, num_classes=3, example=x)
    assert rule.image(x) is x
    rule.normalisation = Normalisation((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    given = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(((0.5, 0.25), (0.4, 0.2), (0.3, 0.1)))], 1)
    torch.testing.assert_close(rule.image(given), x)


def test_a_probe_trains_its_classifier_and_not_the_block():
    torch.manual_seed(0)
    net = localprop.LocalNetwork([nn.Linear(5, 4), nn.Linear(4, 3)])
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    probe = Probe(net.specs(x, 3)[0])
    h = net.blocks[0](x)
    probe(h, LocalBatch(y, x)).loss.backward()
    assert probe.classifier.weight.grad is not None
    assert all(p.grad is None for p in net.parameters())
