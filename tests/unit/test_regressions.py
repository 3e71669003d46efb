"""Mistakes that were made once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import localprop
from localprop.rules.averaged import SHARED
from localprop.train.executor import LocalExecutor
from localprop.train.rows import block_rows


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)), nn.Linear(6, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(12, 6), torch.arange(12) % 3


def rule_of(name: str) -> localprop.Rule:
    return localprop.methods.build(name, localprop.split(chain()), num_classes=3, example=batch()[0])


def test_averaged__a_frozen_block_still_trains_the_dictionary() -> None:
    x, y = batch()
    whole, frozen = rule_of("dcl-averaged"), rule_of("dcl-averaged")
    frozen.load_state_dict(whole.state_dict())
    frozen.net.blocks[0].requires_grad_(False)
    gradients = []
    for rule in (whole, frozen):
        keys = [step.key for step in rule.steps(x, y)]
        assert keys[-1] == SHARED
        [dictionary] = rule.parameter_groups()[SHARED]
        gradients.append(dictionary.grad)
    assert (0, "block") not in [step.key for step in frozen.steps(x, y)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["dcl", "dcl-averaged"])
def test_steps__sees_what_is_frozen_thawed_or_moved_between_batches(name: str) -> None:
    x, y = batch()
    rule = rule_of(name)

    def trained_blocks(x: torch.Tensor) -> list[int | None]:
        keys = []
        for step in rule.steps(x, y):
            keys.append(step.key[0])
            for parameter in rule.parameter_groups()[step.key]:
                assert parameter.grad is not None
                assert parameter.grad.dtype == x.dtype
                parameter.grad = None
        return keys

    everything = trained_blocks(x)
    rule.net.blocks[-1].requires_grad_(False)
    assert len(rule.net) - 1 in everything
    assert trained_blocks(x) == [block for block in everything if block != len(rule.net) - 1]
    rule.net.blocks[-1].requires_grad_(True)
    rule.double()
    assert trained_blocks(x.double()) == everything


@pytest.mark.parametrize("name", ["bp", "dcl"])
def test_steps__refusals_name_the_fix(name: str) -> None:
    x, y = batch()
    rule = rule_of(name)
    with pytest.raises(ValueError, match=r"x\.to\(torch\.float32\)"):
        list(rule.steps(x.double(), y))
    with pytest.raises(ValueError, match="x / 255"):
        list(rule.steps(x.to(torch.uint8), y))
    with pytest.raises(ValueError, match=r"torch\.tensor\(y\)"):
        list(rule.steps(x, y.tolist()))  # type: ignore[arg-type] # the mistake
    with torch.no_grad(), pytest.raises(ValueError, match="no_grad"):
        list(rule.steps(x, y))
    with pytest.raises(ValueError, match="samples of shape"):
        rule.predict(x[:, :4])
    with pytest.raises(ValueError, match="empty"):
        LocalExecutor(rule, torch.optim.AdamW, accumulate=2).step(0, x[:0], y[:0])


def test_split__an_empty_model_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        localprop.split(nn.Sequential())


@pytest.mark.parametrize("settings", [{"temperature": float("inf")}, {"temperature": float("nan")}])
def test_dcl__settings_must_be_finite(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        localprop.methods.build("dcl", localprop.split(chain()), num_classes=3, example=batch()[0], **settings)


def test_dcl__embedding_norm_must_be_a_number() -> None:
    settings = {"initialisation": "orthogonal", "embedding_norm": float("nan")}
    with pytest.raises(ValueError, match="embedding_norm"):
        localprop.methods.build("dcl", localprop.split(chain()), num_classes=3, example=batch()[0], **settings)


def test_contracts__what_leaves_out_a_method_cannot_be_made() -> None:
    class Scoreless(localprop.Objective):
        pass

    class Stepless(localprop.Rule):
        pass

    rule = rule_of("dcl")
    with pytest.raises(TypeError, match=r"abstract.*forward"):
        Scoreless(rule.specs[0])  # type: ignore[abstract] # the mistake
    with pytest.raises(TypeError, match=r"abstract.*exits.*parameter_groups.*steps"):
        Stepless(rule.net, rule.specs)  # type: ignore[abstract] # the mistake


@pytest.mark.parametrize("name", ["bp", "dcl", "dcl-averaged"])
def test_accumulation__the_error_is_that_of_the_whole_batch(name: str) -> None:
    torch.manual_seed(0)
    net = localprop.LocalNetwork([nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)])
    x, y = torch.randn(10, 6), torch.arange(10) % 3
    rule = localprop.methods.build(name, net, num_classes=3, example=x)
    exits = rule.eval().exits(x)
    still = LocalExecutor(rule.train(), lambda group: torch.optim.SGD(group, lr=0.0), accumulate=4)
    rows = block_rows(still.step(0, x, y), y, place={}, names=net.names)
    for row in rows:
        logits = exits[-1 if row["block"] is None else row["block"]]
        assert row["error"] == pytest.approx(100 * float((logits.argmax(1) != y).float().mean()))
