"""What the page says in words: what was compared, what came out, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localprop.report.labels import NONE, human_count, human_estimate, human_ratio, own_recipes, pairs, shared_settings
from localprop.report.page.chart import Cell, Numbers, printable
from localprop.report.page.gather import BACKPROP, Entry, Group
from localprop.report.rows import MeanStd


@dataclass(frozen=True)
class Tile:
    """One number at the head of a comparison."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """What came out: the numbers to look at first, and sentences that say what they mean and what they do not."""

    tiles: tuple[Tile, ...]
    sentences: tuple[str, ...]


def headline(group: Group) -> Headline:
    """Say what came out of a comparison: the best beside backprop, where there is any."""
    others = [entry for entry in group.entries if entry.method != BACKPROP]
    backprop = _lowest([entry for entry in group.entries if entry.method == BACKPROP]) if others else None
    compared = others or list(group.entries)
    best = _lowest(compared)
    assert best is not None
    name = printable(best.label)
    label = f"best of {len(compared)}: {name}" if len(compared) > 1 else name
    tiles = [*([_error_tile(backprop, "backprop")] if backprop else []), _error_tile(best, label), *_more_tiles(best)]
    if len(group.entries) == 1:
        return Headline(tuple(tiles), (_alone(best),))
    sentences = _beside(best, backprop, len(others)) if backprop else _among(best, compared, has_backprop=not others)
    if len(compared) > 1:
        sentences.append(f"{name} was picked by its test error among {len(compared)}, which flatters it.")
    return Headline(tuple(tiles), tuple(sentences))


def _lowest(entries: Sequence[Entry]) -> Entry | None:
    return min(entries, key=lambda entry: entry.row.test_error.mean, default=None)


def _beside(best: Entry, backprop: Entry, count: int) -> list[str]:
    gap = best.row.test_error.mean - backprop.row.test_error.mean
    name = printable(best.label)
    told = f"the best of the {count} other methods, {name}," if count > 1 else name
    return [
        f"Backprop is wrong on {human_estimate(backprop.row.test_error, 2)} % of the test images, {told} on "
        f"{human_estimate(best.row.test_error, 2)} %: {abs(gap):.2f} points {'more' if gap > 0 else 'less'}.",
        _caveat(best.row.test_error, backprop.row.test_error, "backprop"),
    ]


def _among(best: Entry, entries: Sequence[Entry], *, has_backprop: bool) -> list[str]:
    second = sorted(entries, key=lambda entry: entry.row.test_error.mean)[1]
    error = human_estimate(best.row.test_error, 2)
    return [
        f"Of {len(entries)} rows {printable(best.label)} has the lowest test error, {error} %."
        + ("" if has_backprop else " Backprop is not among them."),
        _caveat(best.row.test_error, second.row.test_error, "the next one"),
    ]


def _error_tile(entry: Entry, label: str) -> Tile:
    seeds = f"{entry.row.num_seeds} seeds, mean ± std" if entry.row.num_seeds > 1 else "one seed"
    return Tile(label, f"{human_estimate(entry.row.test_error, 2)}\u00a0%", f"test error, {seeds}")


def _more_tiles(entry: Entry) -> list[Tile]:
    row, name = entry.row, printable(entry.label)
    tiles = []
    if row.ensemble_error is not None and any(row.layer_errors[:-1]):
        error = f"{human_estimate(row.ensemble_error, 2)}\u00a0%"
        tiles.append(Tile(f"{name}, all layers", error, "error of the weighted sum of all blocks"))
    if row.step_ratio is not None:
        tiles.append(Tile(f"{name}, time", human_ratio(row.step_ratio), "of a step of backprop written by hand"))
    if row.memory_ratio is not None:
        tiles.append(Tile(f"{name}, memory", human_ratio(row.memory_ratio), "of backprop written by hand"))
    return tiles


def _alone(entry: Entry) -> str:
    error = f"{printable(entry.label)} is wrong on {human_estimate(entry.row.test_error, 2)} % of the test images. "
    spread = "" if entry.row.num_seeds > 1 else "One seed: nothing is known of its spread. "
    return error + spread + "Nothing stands beside it; give more runs of the same protocol to compare."


def _caveat(best: MeanStd, other: MeanStd, name: str) -> str:
    if best.std is None or other.std is None:
        return f"Beside {name}, at least one has one seed: no spread is known, and a small difference says nothing."
    if abs(best.mean - other.mean) <= best.std + other.std:
        return f"The difference from {name} is within the spread over seeds: not a finding."
    return f"The difference from {name} is larger than the spread over seeds (standard deviations, of few seeds)."


def runs_table(group: Group) -> Numbers:
    """List every run with its own numbers, as its process measured them."""
    columns = [
        "run",
        "method",
        "seed",
        "test error %",
        "step ms",
        "peak memory MB",
        "training s",
        "parameters",
        "commit",
        "weights",
    ]
    cells: list[list[Cell]] = [
        [
            str(run),
            entry.label,
            str(final.seed),
            f"{final.test_error:.2f}",
            None if final.step_seconds is None else f"{1e3 * final.step_seconds:.1f}",
            None if final.peak_memory_bytes is None else f"{final.peak_memory_bytes / 1e6:.0f}",
            f"{final.train_seconds:.0f}",
            human_count(final.parameters + final.extra_parameters),
            final.commit or "unknown",
            (final.weights_sha256 or NONE)[:12],
        ]
        for entry in group.entries
        for run, final in zip(entry.runs, entry.finals, strict=True)
    ]
    return Numbers(columns, cells)


def facts(group: Group) -> list[tuple[str, str]]:
    """Say on what, by which code and with which settings the runs of a group were made."""
    finals = [final for entry in group.entries for final in entry.finals]

    def distinct(values: Sequence[str]) -> str:
        return " / ".join(dict.fromkeys(values))

    told = [
        ("hardware", distinct([pairs(final.hardware) for final in finals])),
        ("versions", distinct([pairs(final.versions) for final in finals])),
        ("commit", distinct([final.commit or "unknown" for final in finals])),
        ("seeds", distinct([", ".join(str(seed) for seed in row.seeds) for row in group.rows])),
        ("settings of all", pairs(shared_settings(group.rows)) or NONE),
    ]
    told += [
        (f"settings of {entry.label}", pairs({"method": entry.row.settings.get("method")}))
        for entry in group.entries
        if len(group.entries) > 1
    ]
    if unlike := own_recipes(group.rows):
        told.append(("trained by settings of their own", unlike))
    return [(name, value) for name, value in told if value]


def replay_commands(group: Group) -> list[str]:
    """Write the command that repeats each run."""
    return [
        command("train", "--config", run / "config.yaml", "--out", "REPEATED")
        for entry in group.entries
        for run in entry.runs
    ]


def command(*words: str | Path) -> str:
    """Write a command of localprop as a shell takes it."""
    return shlex.join(["localprop", *map(str, words)])


def wanted_run(group: Group) -> tuple[Entry, Path]:
    """Return the run to look closer at: the first of the best method beside backprop, or of backprop alone."""
    best = _lowest([entry for entry in group.entries if entry.method != BACKPROP]) or group.entries[0]
    return best, best.runs[0]
