"""Find the runs that a page is about, and group those that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from localprop.report.labels import NONE, flatten
from localprop.report.rows import OWN_SETTINGS, RECIPE, Row, check_builds, row_of
from localprop.report.runs import (
    Cost,
    Final,
    list_methods,
    read_cost,
    read_final,
    read_final_of,
    seed_directories,
)
from localprop.train.directory import FREE_SETTINGS

NO_PROTOCOL = ("method", *RECIPE, *OWN_SETTINGS, *(name for name in FREE_SETTINGS if name != "threads"))
"""Settings in which runs of one protocol may differ; threads decide what time means."""
BACKPROP = "bp"


@dataclass(frozen=True)
class Entry:
    """One method with one set of settings.

    Attributes:
        method: Its name.
        row: Its numbers, by a name that is its own in the group.
        runs: Its run directories, by ascending seed.
        finals: The final record of each.
    """

    method: str
    row: Row
    runs: tuple[Path, ...]
    finals: tuple[Final, ...]

    @property
    def label(self) -> str:
        """What tells it from the other entries of its group."""
        return self.row.method

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of its blocks, their numbers where the runs give none."""
        return self.finals[0].block_names or tuple(f"b{index + 1}" for index in range(len(self.row.layer_errors)))

    @property
    def validated(self) -> bool:
        """Whether its runs held images out."""
        return bool(self.row.settings.get("validation"))

    @property
    def split(self) -> str:
        """The images to follow over training: held-out ones where there are any."""
        return "validation" if self.validated else "test"


@dataclass(frozen=True)
class Group:
    """Runs of one protocol, which may be compared."""

    entries: tuple[Entry, ...]

    @property
    def rows(self) -> list[Row]:
        """The rows of its entries."""
        return [entry.row for entry in self.entries]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the deepest entry."""
        return max(len(row.layer_errors) for row in self.rows)


def gather(directories: Sequence[Path]) -> list[Group]:
    """Read the runs of directories, and group them by protocol in the order given.

    Args:
        directories: Run directories and directories of comparisons, in any mixture.

    Raises:
        ValueError: A directory holds no finished run, a file in it is not valid, or a run is given twice.
    """
    finals = {run: final for directory in directories for run, final in _runs_of(directory).items()}
    protocols: dict[str, dict[str, dict[Path, Final]]] = {}
    for run, final in finals.items():
        methods = protocols.setdefault(_key(_protocol(final)), {})
        methods.setdefault(_key(_identity(final)), {})[run] = final
    return [_group(list(methods.values())) for methods in protocols.values()]


def _runs_of(directory: Path) -> dict[Path, Final]:
    if directory.is_file():
        raise ValueError(f"{directory}: this is a file; name the directory of a run or of a comparison")
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory; name the --out of a training or a comparison")
    if any((directory / name).exists() for name in ("final.json", "config.yaml", "metrics.jsonl")):
        return {directory: read_final_of(directory)}
    methods = list_methods(directory)
    if not methods:
        raise ValueError(
            f"{directory}: neither a run of localprop (no final.json in it) nor a comparison (no METHOD/seed-N in it); "
            "name the --out of a training or a comparison"
        )
    return {run: read_final(run, method) for method in methods for run in seed_directories(directory, method)}


def _protocol(final: Final) -> dict[str, JsonValue]:
    shared = {name: value for name, value in final.settings.items() if name not in NO_PROTOCOL}
    return {"model": final.model, "data": final.data, "epochs": final.epochs, **flatten({"settings": shared})}


def _identity(final: Final) -> dict[str, JsonValue]:
    own = {name: final.settings.get(name) for name in ("method", *RECIPE)}
    return {"name": final.method, **flatten(own)}


def _key(facts: dict[str, JsonValue]) -> str:
    return json.dumps(facts, sort_keys=True)


def _group(methods: Sequence[dict[Path, Final]]) -> Group:
    entries = [_entry(finals) for finals in methods]
    entries.sort(key=lambda entry: entry.method != BACKPROP)  # stable: the yardstick first
    names = [entry.method for entry in entries]
    return Group(
        tuple(
            replace(entry, row=replace(entry.row, method=_label(entry, entries)))
            if names.count(entry.method) > 1
            else entry
            for entry in entries
        )
    )


def _entry(finals: dict[Path, Final]) -> Entry:
    ordered = dict(sorted(finals.items(), key=lambda item: item[1].seed))
    seeds: dict[int, Path] = {}
    for run, final in ordered.items():
        if final.seed in seeds:
            raise ValueError(
                f"{run} and {seeds[final.seed]} are both {final.method} with seed {final.seed} and the same settings; "
                "give one of them"
            )
        seeds[final.seed] = run
    check_builds(ordered)
    records = tuple(ordered.values())
    return Entry(records[0].method, row_of(records, _cost(ordered)), tuple(ordered), records)


def _cost(finals: dict[Path, Final]) -> Cost | None:
    """Read the first cost that a comparison measured of these runs."""
    for run, final in finals.items():
        if (run.parent.name, run.name) == (final.method, f"seed-{final.seed}"):
            cost = read_cost(run.parent.parent, final.method, final.model)
            if cost is not None:
                return cost
    return None


def _label(entry: Entry, entries: Sequence[Entry]) -> str:
    """Name a method by the settings in which it differs from its namesakes."""
    own = _own_settings(entry)
    others = [_own_settings(other) for other in entries if other.method == entry.method and other is not entry]
    names = dict.fromkeys([*own, *(name for other in others for name in other)])
    differing = [name for name in names if any(other.get(name) != own.get(name) for other in others)]
    told = (f"{name.removeprefix('method.')} {NONE if own.get(name) is None else own[name]}" for name in differing)
    return f"{entry.method} ({', '.join(told)})"


def _own_settings(entry: Entry) -> dict[str, JsonValue]:
    return flatten({name: entry.row.settings.get(name) for name in ("method", *RECIPE)})
