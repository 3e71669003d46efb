"""The parts of the page that are about one group of comparable runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localprop.report.labels import protocol_label, seeds_label
from localprop.report.page.chart import Chart, Numbers, Picture
from localprop.report.page.compared import cost_charts, end_chart
from localprop.report.page.gather import Entry, Group
from localprop.report.page.known import KINDS, Part, parts_of
from localprop.report.page.left_early import Slider, slider
from localprop.report.page.over_training import training_charts
from localprop.report.page.stored import Explained, read_exits, read_explained
from localprop.report.page.words import (
    Headline,
    command,
    facts,
    headline,
    replay_commands,
    runs_table,
    wanted_run,
)
from localprop.report.rows import MeanStd
from localprop.report.tables import columns_of

SortKey = float | str | None


@dataclass(frozen=True)
class SortableTable:
    """A table whose rows can be put in the order of a column.

    Attributes:
        headers: Of the columns; the first names the rows.
        meanings: What each column is.
        rows: A cell a column: its text, and what it is sorted by; None comes last.
    """

    headers: tuple[str, ...]
    meanings: dict[str, str]
    rows: tuple[tuple[tuple[str, SortKey], ...], ...]


@dataclass(frozen=True)
class Missing:
    """What no run of a group has, and what would add it."""

    reason: str
    command: str


@dataclass(frozen=True)
class Knowledge:
    """The analyses of one run, and why others are not there."""

    parts: Sequence[Part]
    images: str
    absent: dict[str, str]


@dataclass(frozen=True)
class Section:
    """All that the page says of a group. Where several runs have something, it is by the run's name.

    `featured` is the method whose training is shown first.
    """

    title: str
    seeds: str
    headline: Headline
    table: SortableTable
    featured: str
    training: dict[str, Chart]
    end: Chart | None
    costs: Sequence[Chart]
    exits: dict[str, Slider]
    exits_missing: Missing | None
    knowledge: dict[str, Knowledge]
    knowledge_missing: Missing | None
    facts: Sequence[tuple[str, str]]
    runs: Numbers
    replays: Sequence[str]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of its analyses."""
        return [
            shown
            for knowledge in self.knowledge.values()
            for part in knowledge.parts
            for shown in part.shown
            if isinstance(shown, Picture)
        ]


def section_of(group: Group) -> Section:
    """Read and lay out all that the page says of a group.

    Raises:
        ValueError: A file of a run is missing or not valid.
    """
    rows = group.rows
    exits: dict[str, Slider] = {}
    knowledge: dict[str, Knowledge] = {}
    for entry in group.entries:
        for run, final in zip(entry.runs, entry.finals, strict=True):
            name = entry.label if len(entry.runs) == 1 else f"{entry.label}, seed {final.seed}"
            if (found := read_exits(run, final)) is not None:
                exits[name] = slider(found, entry.block_names)
            if (explained := read_explained(run, final)) is not None:
                knowledge[name] = _knowledge(explained, parts_of(explained, run / "explain"), command("explain", run))
    knowledge = dict(sorted(knowledge.items(), key=lambda item: -len(item[1].parts)))  # the most telling first
    wanted, run = wanted_run(group)
    return Section(
        title=protocol_label(rows),
        seeds=seeds_label(rows),
        headline=headline(group),
        table=_table(group),
        featured=wanted.label,
        training=training_charts(group),
        end=end_chart(group) if any(any(row.layer_errors[:-1]) for row in rows) else None,
        costs=cost_charts(group),
        exits=exits,
        exits_missing=None if exits else _no_exits(wanted, command("exits", run)),
        knowledge=knowledge,
        knowledge_missing=None if knowledge else Missing("None of these runs was analysed.", command("explain", run)),
        facts=facts(group),
        runs=runs_table(group),
        replays=replay_commands(group),
    )


def _no_exits(entry: Entry, measure: str) -> Missing:
    if entry.validated:
        return Missing("No exits were measured of these runs.", measure)
    return Missing(
        "No exits were measured: these runs held no images out to choose a threshold on. Train with --validation 0.1 "
        "first.",
        measure,
    )


def _knowledge(explained: Explained, parts: Sequence[Part], again: str) -> Knowledge:
    others = [name for name in dict.fromkeys([*KINDS, *explained.skipped]) if name not in explained.analyses]
    absent = {name: explained.skipped.get(name, f"not made; {again}") for name in others}
    images = f"Seen on {explained.train_images} training and {explained.test_images} test images."
    return Knowledge(parts, images, absent)


def _table(group: Group) -> SortableTable:
    """Lay out the comparison without a column for each block: the charts and their tables have these."""
    columns = [column for column in columns_of(group.rows) if len(column.headers) == 1 and column.headers != ("b1",)]
    meanings = {column.headers[0]: column.meaning for column in columns}
    meanings["n"] = "number of runs with different seeds behind every mean ± standard deviation."
    rows = tuple(
        (
            *((cell, _sort_key(column.values(row)[0])) for column in columns for cell in column.cells(row)),
            (str(row.num_seeds), float(row.num_seeds)),
        )
        for row in group.rows
    )
    return SortableTable(tuple(meanings), meanings, rows)


def _sort_key(value: object) -> SortKey:
    if isinstance(value, MeanStd):
        return value.mean
    if isinstance(value, tuple):  # a ratio and its spread
        return _sort_key(value[0])
    return float(value) if isinstance(value, int | float) else None if value is None else str(value)
