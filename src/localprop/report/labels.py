"""How numbers and provenance are worded, in tables and figures alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from localprop.report.rows import RECIPE, MeanStd, Row

NONE = "–"


def human_estimate(value: MeanStd | None, decimals: int) -> str:
    """Write as `mean ± std`, the mean alone for one seed, a dash for no value."""
    if value is None:
        return NONE
    mean = f"{value.mean:.{decimals}f}"
    return mean if value.std is None else f"{mean} ± {value.std:.{decimals}f}"


def human_count(number: int) -> str:
    """Write a count with three significant digits: 512, 5.12K, 1.15M."""
    for unit, size in (("", 1), ("K", 10**3), ("M", 10**6), ("B", 10**9)):
        short = f"{number / size:.3g}"
        if "e" not in short:
            return short + unit
    return f"{number:.3g}"


def human_ratio(ratio: float | None, spread: tuple[float, float] | None = None) -> str:
    """Write a multiple of backprop: 0.72x, with its spread if there is one: 0.72x (0.70 to 0.74)."""
    if ratio is None:
        return NONE
    return f"{ratio:.2f}x" + (f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else "")


def flatten(settings: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Flatten nested settings to dotted names, without those that are unset."""
    flat: dict[str, JsonValue] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def model_label(row: Row) -> str:
    """Name the network with its width, where the settings give one."""
    width = flatten(row.settings).get("model.width")
    return row.model if width is None else f"{row.model} (width {width})"


def protocol_label(rows: Sequence[Row]) -> str:
    """Say what was trained on what, and how often."""
    epochs = rows[0].epochs
    return f"{model_label(rows[0])} on {rows[0].data}, {epochs:g} epoch{'' if epochs == 1 else 's'}"


def seeds_label(rows: Sequence[Row]) -> str:
    """Name the seeds, method by method where they differ."""
    by_seeds: dict[str, list[str]] = {}
    for row in rows:
        by_seeds.setdefault(", ".join(map(str, row.seeds)), []).append(row.method)
    if len(by_seeds) == 1:
        seeds = next(iter(by_seeds))
        return f"seed{'s' if ',' in seeds else ''} {seeds}"
    return "seeds " + "; ".join(f"{seeds} ({', '.join(names)})" for seeds, names in by_seeds.items())


def pairs(facts: Mapping[str, JsonValue]) -> str:
    """Write facts as `name value, name value`, nested names dotted."""
    return ", ".join(f"{name} {value}" for name, value in flatten(facts).items())


def caption(rows: Sequence[Row]) -> str:
    """Say in one line what was trained on what, how often, by which code on which machine."""
    origins = [origin for row in rows for origin in row.provenance]

    def distinct(values: Sequence[str]) -> str:
        return " / ".join(dict.fromkeys(values))

    repeated = ", mean ± standard deviation over seeds" if any(row.num_seeds > 1 for row in rows) else ""
    return (
        f"{protocol_label(rows)}, {seeds_label(rows)}; "
        f"errors of the last epoch{repeated}. "
        f"Hardware: {distinct([pairs(origin.hardware) for origin in origins])}. "
        f"Versions: {distinct([pairs(origin.versions) for origin in origins])}. "
        f"Commit: {distinct([origin.commit or 'unknown' for origin in origins])}."
    )


def shared_settings(rows: Sequence[Row]) -> dict[str, JsonValue]:
    """Keep the settings that every method has alike."""
    return {
        name: value
        for name, value in rows[0].settings.items()
        if all(name in row.settings and row.settings[name] == value for row in rows)
    }


def own_recipes(rows: Sequence[Row]) -> str:
    """Say which methods are trained unlike most, and in what: `ff (batch_size 64, optimizer.lr 0.001)`."""
    flat = [flatten({name: row.settings.get(name) for name in RECIPE}) for row in rows]
    names = dict.fromkeys(name for settings in flat for name in settings)
    values = {name: [settings.get(name) for settings in flat] for name in names}
    usual = {name: max(found, key=found.count) for name, found in values.items()}
    unlike = []
    for row, settings in zip(rows, flat, strict=True):
        own = {name: settings.get(name) for name in names if settings.get(name) != usual[name]}
        if own:
            unlike.append(f"{row.method} ({', '.join(f'{n} {NONE if v is None else v}' for n, v in own.items())})")
    return "; ".join(unlike)
