"""Early exits: what really skips blocks answers as if all exits had been computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional.calibration import MEASURES, Measure
from localprop.infer.exits import ExitPolicy, check_early_exits, choose_exits, predict_early
from localprop.infer.sweep import (
    Arithmetic,
    Outcome,
    Recorded,
    Sweep,
    cheapest,
    count_arithmetic,
    record_exits,
    spread,
)
from localprop.methods import CATALOGUE
from localprop.models import patches
from tests.reference import calibration as twin
from tests.traits import traits

SHAPE, CLASSES, NUM = (1, 16, 16), 4, 24
WHOLE = {"ff", "symba", "pff", "bp", "fa", "usf", "brsf", "frsf", "dfa", "sdfa", "dni", "cdni", "dni-unlocked", "tp"}
WHOLE |= {"dtp", "direct-dtp", "pepita", "last-block"}
"""Methods whose blocks cannot be run one after another to a prediction, or that train a single block."""
SILENT = {name for name in CATALOGUE if not traits(name).hidden_predictions}
EARLY = [name for name in CATALOGUE if name not in SILENT | WHOLE]


def network(*, dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
        nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )


def images(num: int = NUM) -> Tensor:
    return torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(method: str) -> localprop.Rule:
    torch.manual_seed(0)
    model = patches(SHAPE, CLASSES, width=0.01, stages=2) if traits(method).model == "patches" else network()
    rule = localprop.methods.build(method, localprop.split(model), num_classes=CLASSES, example=images(2).float())
    for parameter in rule.parameters():  # objectives that start at zero would be equally unsure of everything
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return rule.double().eval()


def all_exits(rule: localprop.Rule, x: Tensor) -> list[Tensor | None]:
    exits = rule.exits(x)
    return [*exits[:-1], rule.answer(exits)]


def policies(exits: Sequence[Tensor | None], measure: Measure) -> list[ExitPolicy]:
    """Return policies under which all, most, some and none leave early."""
    temperatures = tuple(0.5 + 0.25 * block for block in range(len(exits)))
    arithmetic = Arithmetic((1,) * len(exits), 1)
    found = Sweep(Recorded(tuple(exits), torch.zeros(NUM, dtype=torch.int64)), measure, temperatures, arithmetic)
    thresholds = [one.threshold for one in found.candidates()]
    middle = [(a + b) / 2 for a, b in pairwise(thresholds[:-1])]  # no tie by rounding
    return [ExitPolicy(measure, threshold, temperatures) for threshold in [0.0, *middle[:: NUM // 3], 1.5, math.inf]]


def mixed(rule: localprop.Rule, x: Tensor, measure: Measure) -> ExitPolicy:
    """Return the policy under which samples leave at the most blocks."""
    exits = all_exits(rule, x)
    return max(policies(exits, measure), key=lambda policy: len(set(choose_exits(exits, policy).blocks.tolist())))


@pytest.mark.parametrize("method", EARLY)
def test_skipping_answers_as_choosing_afterwards(method: str) -> None:
    rule = build(method)
    x = images()
    exits = all_exits(rule, x)
    seen = set()
    for measure in MEASURES if method in ("pred", "cafo-ce") else MEASURES[:1]:
        for policy in policies(exits, measure):
            early, expected = predict_early(rule, x, policy), choose_exits(exits, policy)
            assert early.blocks.tolist() == expected.blocks.tolist()
            torch.testing.assert_close(early.logits, expected.logits, rtol=1e-9, atol=1e-11)
            assert early.logits.argmax(1).tolist() == expected.logits.argmax(1).tolist()
            seen |= set(early.blocks.tolist())
    assert len(seen) > 1  # some left early, some did not
    torch.testing.assert_close(early.logits, rule.predict(x), rtol=1e-9, atol=1e-11)  # the last policy lets none leave


@pytest.mark.parametrize("method", sorted(SILENT | WHOLE))
def test_methods_without_early_exits_are_refused_with_the_reason(method: str) -> None:
    reason = {"ff": "every label", "symba": "every label", "pff": "settle together", "last-block": "one block"}.get(
        method, "make no prediction"
    )
    if traits(method).refused:
        pytest.skip("does not train this network")
    rule = build(method)
    with pytest.raises(ValueError, match=f"exits: .*{reason}"):
        check_early_exits(rule, images(1))


def test_later_blocks_run_on_fewer_samples() -> None:
    rule = build("pred")
    x = images()
    policy = mixed(rule, x, "confidence")
    sizes: list[int] = []
    for block in rule.net.blocks:
        block.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    left = torch.bincount(predict_early(rule, x, policy).blocks, minlength=4)
    waiting = [NUM - int(left[:block].sum()) for block in range(4)]
    assert sizes == [size for size in waiting if size]
    assert sizes[-1] < NUM
    sizes.clear()
    predict_early(rule, x, ExitPolicy("confidence", 0.0, (1.0,) * 4))
    assert sizes == [NUM]  # all have left at the first block: no other runs


def test_a_batch_of_one() -> None:
    rule = build("pred")
    x = images()
    policy = mixed(rule, x, "margin")
    whole = predict_early(rule, x, policy)
    for row in range(NUM):
        one = predict_early(rule, x[row : row + 1], policy)
        assert one.blocks.tolist() == whole.blocks[row : row + 1].tolist()
        torch.testing.assert_close(one.logits, whole.logits[row : row + 1], rtol=1e-9, atol=1e-11)


def test_channels_stay_last_in_memory() -> None:
    rule = build("pred").to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    layouts = []
    rule.net.blocks[1].register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    for policy in policies(all_exits(rule, x), "confidence")[1:-1]:
        predict_early(rule, x, policy)
    assert layouts
    assert all(layouts)


def test_what_is_no_number_never_leaves_early() -> None:
    rule = build("pred")
    x = images()
    x[3] = math.nan
    early = predict_early(rule, x, ExitPolicy("entropy", 0.0, (1.0,) * 4))
    assert early.blocks.tolist() == [3 if row == 3 else 0 for row in range(NUM)]
    assert early.logits[3].isnan().all()


def test_mistakes_are_refused() -> None:
    rule = build("pred")
    policy = ExitPolicy("confidence", 0.5, (1.0,) * 4)
    with pytest.raises(ValueError, match="the batch is empty"):
        predict_early(rule, images(0), policy)
    with pytest.raises(ValueError, match=r"takes samples of shape \(1, 16, 16\)"):
        predict_early(rule, images()[:, :, 1:], policy)
    with pytest.raises(ValueError, match=r"training mode.*rule\.eval"):
        predict_early(rule.train(), images(), policy)
    single = localprop.split(nn.Sequential(nn.Flatten(), nn.Linear(256, CLASSES)))
    alone = localprop.methods.build("pred", single, num_classes=CLASSES, example=images(2).float()).eval()
    with pytest.raises(ValueError, match="one block"):
        check_early_exits(alone, images(1).float())


# ---------------------------------------------------------------- sweeps


def recorded() -> Recorded:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (NUM,), generator=generator)
    help_of_block = torch.nn.functional.one_hot(y, CLASSES).double()
    logits = [torch.randn(NUM, CLASSES, generator=generator, dtype=torch.float64) + s * help_of_block for s in range(3)]
    return Recorded((logits[0], None, logits[1], logits[2]), y)


ARITHMETIC = Arithmetic((10, 20, 30, 50), 45)


@pytest.mark.parametrize("measure", MEASURES)
def test_outcomes_are_those_of_each_sample_alone(measure: Measure) -> None:
    found, temperatures = recorded(), (1.5, 1.0, 0.7, 1.0)
    sweep = Sweep(found, measure, temperatures, ARITHMETIC)
    thresholds = [one.threshold for one in sweep.candidates()[:-1]]
    for outcome in [sweep.at((a + b) / 2) for a, b in pairwise(thresholds)]:  # no tie by rounding
        rows = [[None if e is None else e[n].tolist() for e in found.exits] for n in range(NUM)]
        blocks = [twin.first_sure(row, measure, outcome.threshold, temperatures) for row in rows]
        answers = [row[block] for row, block in zip(rows, blocks, strict=True)]
        wrong = sum(a.index(max(a)) != label for a, label in zip(answers, found.y.tolist(), strict=True))
        assert outcome.error == pytest.approx(100 * wrong / NUM, abs=1e-5)
        assert outcome.shares == pytest.approx([blocks.count(block) / NUM for block in range(4)])
        assert outcome.flops == pytest.approx(sum(ARITHMETIC.early[block] for block in blocks) / NUM)


def test_candidates_reach_from_all_to_none() -> None:
    candidates = Sweep(recorded(), "confidence", (1.0,) * 4, ARITHMETIC).candidates()
    assert candidates[0].shares == (1.0, 0.0, 0.0, 0.0)
    assert candidates[-1].shares == (0.0, 0.0, 0.0, 1.0)
    assert candidates[-1].flops == ARITHMETIC.whole
    flops = [one.flops for one in candidates[:-1]]
    assert flops == sorted(flops)
    points = spread(candidates, 5)
    assert [one.flops for one in points] == sorted(one.flops for one in points)
    assert points[0] is candidates[0]
    assert len(points) <= 5


def test_one_label_alone_and_one_image() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    sweep = Sweep(Recorded((logits, logits), torch.tensor([0])), "margin", (1.0, 1.0), Arithmetic((1, 2), 2))
    assert [one.error for one in sweep.candidates()] == [0.0] * 3
    assert cheapest(sweep.candidates(), 0.0).shares == (1.0, 0.0)


def test_cheapest_keeps_the_error() -> None:
    outcome = partial(Outcome, shares=())
    candidates = [
        outcome(0.0, 9.0, flops=1.0),
        outcome(0.5, 2.5, flops=2.0),
        outcome(0.7, 2.4, flops=2.0),
        outcome(0.9, 2.0, flops=5.0),
        outcome(math.inf, 2.0, flops=4.0),
    ]
    assert cheapest(candidates, 0.5).threshold == 0.7
    assert cheapest(candidates, 0.0).threshold == math.inf  # exits that few take cost more than they save
    assert cheapest(candidates, 50.0).threshold == 0.0
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="max_error_increase: must be 0 or more"):
            cheapest(candidates, wrong)


def test_arithmetic_by_hand() -> None:
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU()), nn.Linear(8, CLASSES))
    rule = localprop.methods.build(
        "mono-forward", localprop.split(model), num_classes=CLASSES, example=images(2).float()
    )
    found = count_arithmetic(rule.eval(), images(1).float())
    first = 2 * 256 * 8
    assert found == Arithmetic((first + 2 * 8 * 4, first + 2 * 8 * 4 + 2 * 8 * 4), first + 2 * 8 * 4)


def test_recording_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the set is empty"):
        record_exits(build("pred"), [])
