"""Training follows a rule's phases: steps, schedule, inputs, and what is done at the borders."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.infer.evaluate import evaluate
from localprop.record import read
from localprop.train import training
from localprop.train.config import config_from
from localprop.train.executor import LocalExecutor
from localprop.train.features import FeatureCache
from localprop.train.fit import fit
from localprop.train.phases import Borders, plan, takes_steps
from localprop.types import BlockStep, Phase
from tests.phased import Phased

SETTINGS = {
    "method": "tests.phased:METHOD",
    "model": "conv",
    "model.width": 0.125,
    "model.dropout": 0.2,
    "data": "fashion-mini",
    "data.flip": False,
    "image_size": 12,
    "batch_size": 32,
    "epochs": 2,
    "limit_batches": 8,
    "log_every": 1,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def phase(name: str, fraction: float, first: int = 0) -> Phase:
    return Phase(name, range(first, 3), fraction)


@pytest.mark.parametrize(
    ("fractions", "total", "expected"),
    [
        ([1.0], 7, [(0, 7)]),
        ([0.5, 0.5], 7, [(0, 4), (4, 7)]),
        ([0.25, 0.0, 0.75], 8, [(0, 2), (2, 2), (2, 8)]),
        ([0.0, 1.0, 0.0], 3, [(0, 0), (0, 3), (3, 3)]),
        ([1 / 3] * 3, 100, [(0, 33), (33, 67), (67, 100)]),
        ([0.1] * 5 + [0.5], 10, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 10)]),
        ([0.0], 0, [(0, 0)]),
    ],
)
def test_the_steps_are_shared_out_without_gaps(
    fractions: list[float], total: int, expected: list[tuple[int, int]]
) -> None:
    found = plan([phase(str(i), f) for i, f in enumerate(fractions)], num_blocks=3, total_steps=total)
    assert [(stretch.start, stretch.stop) for stretch in found] == expected


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([phase("a", 0.5), phase("b", 0.4)], "the fractions must be 0 or more and sum to 1"),
        ([phase("a", 1.5), phase("b", -0.5)], "the fractions must be 0 or more"),
        ([Phase("a", range(2, 5))], r"'a' trains range\(2, 5\), the network has blocks 0 \.\. 2"),
        ([phase(str(i), 0.1) for i in range(10)], "a run of 4 steps is too short for phase '0' of 10.*raise --epochs"),
    ],
)
def test_phases_that_cannot_be_followed_are_refused(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(phases, num_blocks=3, total_steps=4)


class Seen(training.Training):
    """Notes what each step is given."""

    def _train_step(self) -> tuple[list[BlockStep], Tensor]:
        steps, y = super()._train_step()
        lr = next(iter(self.executor.optimizers.values())).param_groups[0]["lr"]
        self.seen.append(([step.key for step in steps], lr, list(self.rule.calls)))
        return steps, y


def run(directory: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[Seen, str]:
    kept: list[Seen] = []

    def make(*args: object, **settings: bool) -> Seen:
        made = Seen(*args, **settings)
        made.seen = []
        kept.append(made)
        return made

    monkeypatch.setattr("localprop.train.fit.Training", make)
    stream = io.StringIO()
    fit(config_from({**SETTINGS, **settings}), directory, stream=stream)
    return kept[0], stream.getvalue()


def test_each_phase_trains_its_blocks_with_a_schedule_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    schedule = {"optimizer.lr": 0.01, "schedule": "linear"}
    trained, shown = run(tmp_path / "run", monkeypatch, **schedule)
    keys, rates, calls = zip(*trained.seen, strict=True)
    assert list(keys) == [[(0, "block")]] * 4 + [[(1, "block"), (2, "block")]] * 12
    assert rates == pytest.approx([0.01 * (1 - i / 4) for i in range(4)] + [0.01 * (1 - i / 12) for i in range(12)])
    first, closed, rest = ([("prepare", name), ("finish", name)] for name in ("first", "closed form", "rest"))
    assert calls[3] == first[:1]
    assert calls[4] == [*first, *closed, rest[0]]
    assert trained.rule.calls == [*first, *closed, *rest]
    assert "phase first: 4 steps on images" in shown
    assert "phase rest: 12 steps on features" in shown
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert {row["phase"] for row in rows if row["step"] <= 4} == {"first"}
    assert {row["phase"] for row in rows if row["step"] > 4} == {"rest"}


def test_a_run_of_one_phase_says_nothing_of_phases(tmp_path: Path) -> None:
    stream = io.StringIO()
    fit(config_from({**SETTINGS, "method": "pred"}), tmp_path / "run", stream=stream)
    assert "phase" not in stream.getvalue()
    assert not any("phase" in row for row in read(tmp_path / "run" / "metrics.jsonl"))


def test_features_are_those_of_frozen_blocks_in_evaluation_mode() -> None:
    net = localprop.models.conv((1, 12, 12), 3, width=0.125, dropout=0.5)
    x = torch.randn(5, 1, 12, 12)
    rule = localprop.methods.build("pred", net, num_classes=3, example=x).train()
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    found = rule.features(x, 2)
    assert all(module.training for module in rule.modules())
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())
    assert not found.requires_grad
    assert rule.features(x, 0) is x
    rule.eval()
    assert torch.equal(found, rule.net.blocks[1](rule.net.blocks[0](x)).detach())


def numbers(directory: Path) -> tuple[object, object]:
    final = json.loads((directory / "final.json").read_text())
    return final["weights_sha256"], final["layer_errors"]


def test_cached_features_train_as_computed_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, computed = run(tmp_path / "computed", monkeypatch)
    cached, shown = run(tmp_path / "cached", monkeypatch, feature_cache_mb=200)
    assert "on features\n" in computed
    assert "MB of cached features" in shown
    assert isinstance(cached.inputs._cache, FeatureCache)
    assert numbers(tmp_path / "cached")[1] == pytest.approx(numbers(tmp_path / "computed")[1], abs=1)
    files = {path.name for path in (tmp_path / "cached").rglob("*")}
    assert files == {path.name for path in (tmp_path / "computed").rglob("*")}, "the cache leaves no file"


def test_features_over_the_cap_are_computed_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "computed", monkeypatch)
    _, shown = run(tmp_path / "capped", monkeypatch, feature_cache_mb=1)
    assert shown.count("are more than --feature-cache-mb 1") == 1
    assert numbers(tmp_path / "capped") == numbers(tmp_path / "computed")


def test_features_of_augmented_images_are_not_cached(tmp_path: Path) -> None:
    settings = {**SETTINGS, "data.flip": True, "feature_cache_mb": 10}
    with pytest.raises(ValueError, match=r"feature-cache-mb 10: features of augmented images.*--data.flip false"):
        fit(config_from(settings), tmp_path / "run", stream=io.StringIO())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_cache_gives_back_what_it_was_given(tmp_path: Path, dtype: torch.dtype) -> None:
    h, y = torch.randn(10, 3, 4).to(dtype), torch.arange(10)
    pairs = zip(h.split(4), y.split(4), strict=True)
    cache = FeatureCache(pairs, num_images=10, directory=tmp_path)
    order = torch.randperm(10)
    found, labels = cache.batch(order)
    assert torch.equal(found, h[order])
    assert torch.equal(labels, order)
    assert not list(tmp_path.iterdir())


def test_a_rule_without_steps_is_finished_evaluated_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phased, "phases", lambda self: (Phase("closed form", range(3), 0.0),))
    trained, _ = run(tmp_path / "run", monkeypatch)
    assert trained.rule.calls == [("prepare", "closed form"), ("finish", "closed form")]
    assert not takes_steps(trained.rule.phases())
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert final["step_seconds"] is None
    assert final["train_seconds"] > 0
    assert [row["kind"] for row in read(tmp_path / "run" / "metrics.jsonl")] == ["evaluation"]
    (tmp_path / "run" / "final.json").unlink()
    again = fit(config_from(SETTINGS), tmp_path / "run", resume=True, stream=io.StringIO())
    assert again["weights_sha256"] == final["weights_sha256"]


def test_hooks_run_in_evaluation_mode_and_give_the_mode_back() -> None:
    net = localprop.models.conv((1, 12, 12), 3, width=0.125)
    x, y = torch.randn(6, 1, 12, 12), torch.tensor([0, 1, 2, 0, 1, 2])
    rule = localprop.methods.get("tests.phased:METHOD").build(net, num_classes=3, example=x).train()
    borders = Borders(rule, plan(rule.phases(), num_blocks=3, total_steps=8), lambda: [(x, y)])
    borders.before(0)
    borders.after(2)
    assert rule.training
    assert torch.is_grad_enabled()
    assert len(rule.calls) == 4


def test_the_executor_steps_the_groups_of_the_blocks_that_it_is_given() -> None:
    net = localprop.models.fc((1, 8, 8), 3, hidden=16)
    x, y = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    for accumulate in (1, 2):
        rule = localprop.methods.build("pred", net, num_classes=3, example=x)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        executor = LocalExecutor(rule, lambda group: torch.optim.AdamW(group, lr=0.01), accumulate=accumulate)
        steps = executor.step(0, rule.features(x, 1), y, blocks=range(1, 2))
        assert [step.key for step in steps] == [(1, "block")]
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert {name.split(".")[1] for name in moved} == {"1"}


def test_the_answer_of_a_rule_is_what_is_evaluated() -> None:
    class First(localprop.Rule):
        def parameter_groups(self) -> dict:
            return {}

        def steps(self, x: Tensor, y: Tensor, **settings: object) -> Iterator[BlockStep]:
            return iter(())

        def exits(self, x: Tensor) -> list[Tensor | None]:
            return [torch.tensor([[1.0, 0.0]]).expand(len(x), 2), torch.tensor([[0.0, 1.0]]).expand(len(x), 2)]

        def answer(self, exits: object) -> Tensor:
            return exits[0]

    net = localprop.LocalNetwork([nn.Linear(3, 2), nn.Linear(2, 2)])
    x = torch.randn(4, 3)
    rule = First(net, net.specs(x, 2))
    found = evaluate(rule, [(x, torch.tensor([0, 0, 0, 1]))])
    assert (found.error, found.layer_errors) == (25.0, (25.0, 75.0))
    assert torch.equal(rule.predict(x), rule.exits(x)[0])
