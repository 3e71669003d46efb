"""A run with phases that is killed at and around their borders ends as the undisturbed run does, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import KILLED, Server, assert_same_end, steps_kept


def command(directory: Path, *more: object) -> list[object]:
    """Train 16 steps: 4 in the first phase, none in the second, 12 in the third."""
    settings = (
        "--method tests.phased:METHOD --model conv --model.width 0.125 --model.dropout 0.2 --data fashion-mini "
        "--data.flip false --image-size 12 --batch-size 32 --epochs 2 --limit-batches 8 --checkpoint-every 2 "
        "--log-every 1 --keep 2 --threads 1 --device cpu"
    )
    return ["train", *settings.split(), *more, "--out", directory]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


DEATHS = [
    # In `prepare` of the first phase, before and after it did its work; nothing is kept yet.
    (("at_border", 1, "before"), []),
    (("at_border", 1, "after"), []),
    (("in_update", 3), [2]),
    # At step 4 (from step 2 on): `finish` of the first, `prepare` and `finish` of the second.
    (("at_border", 1, "before"), [2]),
    (("at_border", 2, "after"), [2]),
    (("at_border", 3, "after"), [2]),
    (("in_write", 1, "before replace"), [2]),
    (("in_write", 1, "after replace"), [2, 4]),
    # Now from the border itself: `prepare` of the third.
    (("at_border", 1, "before"), [2, 4]),
    (("at_border", 1, "after"), [2, 4]),
    # Just behind the border, and in the middle of the phase, where nothing may be prepared again.
    (("in_update", 2), [2, 4]),
    (("in_write", 2, "after replace"), [4, 6, 8]),
    (("at_border", 1, "before"), [12, 14]),
    (("at_border", 1, "after"), [12, 14]),
    (("in_replacing", "final.json"), [14, 16]),
]


@pytest.mark.parametrize(
    "cache",
    [
        pytest.param([], id="computed", marks=pytest.mark.slow),
        pytest.param(["--feature-cache-mb", 60], id="cached"),
    ],
)
def test_a_run_killed_around_its_borders_ends_as_the_undisturbed_run(
    cache: list[object], server: Server, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    ended = server.run(*command(undisturbed, *cache))
    assert ended.code == 0, ended.output
    assert ("MB of cached features" in ended.output) == bool(cache)
    again = [*command(run, *cache), "--resume", "auto"]
    for place, left in DEATHS:
        ended = server.run(*again, event=place)
        assert ended.code == KILLED, f"{place}: {ended.output}"
        assert steps_kept(run) == left, place
    ended = server.run(*again)
    assert ended.code == 0, ended.output
    assert_same_end(run, undisturbed)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint", "config.yaml", "final.json", "metrics.jsonl"]


def test_a_run_killed_while_it_reads_cached_features(server: Server, tmp_path: Path) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    cache = ["--feature-cache-mb", 60]
    assert server.run(*command(undisturbed, *cache)).code == 0
    again = [*command(run, *cache), "--resume", "auto"]
    assert server.run(*again, event=("in_features", 6)).code == KILLED
    assert steps_kept(run) == [6, 8]
    assert server.run(*again).code == 0
    assert_same_end(run, undisturbed)
