"""Gather a comparison from its directory: one row a method, over all its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pydantic import JsonValue

from localprop.report.runs import Cost, Final, list_methods, read_cost, read_final, seed_directories

OWN_SETTINGS = ("seed", "out")
"""Settings that differ from run to run of one method."""
RECIPE = ("batch_size", "optimizer", "schedule")
"""Settings that a method may bring with it, because it does not train by those of the others; tables say so."""


@dataclass(frozen=True)
class MeanStd:
    """A mean over seeds with the sample standard deviation, None for a single seed."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Provenance:
    """Where and by what code a run was made."""

    hardware: Mapping[str, JsonValue]
    versions: Mapping[str, JsonValue]
    commit: str | None


@dataclass(frozen=True)
class Row:
    """One method of a comparison.

    Attributes:
        method: Its name.
        title: Its name in full; the short name where the runs give none.
        model: The network's name.
        data: The data set's name.
        epochs: Passes over the training set.
        seeds: The seeds, ascending.
        test_error: Error of the network's answer, percent.
        layer_errors: Error of each block's own prediction, percent; None where a block has none.
        ensemble_error: Error of the weighted sum of the blocks' predictions, percent.
        ensemble_weights: Which weights that sum has.
        parameters: Number of parameters of the network.
        extra_parameters: Number of parameters beside the network.
        step_ratio: Time of a step as a multiple of hand-written backprop.
        step_ratio_spread: Lowest and highest such ratio measured.
        memory_ratio: Peak memory as a multiple of hand-written backprop.
        live_ratio: Peak bytes of live tensors as a multiple of hand-written backprop.
        train_seconds: Time of a whole run, seconds, mean over seeds.
        settings: The settings that all its runs share.
        provenance: Every distinct origin of the runs.
    """

    method: str
    title: str
    model: str
    data: str
    epochs: float
    seeds: tuple[int, ...]
    test_error: MeanStd
    layer_errors: tuple[MeanStd | None, ...]
    ensemble_error: MeanStd | None
    ensemble_weights: str | None
    parameters: int
    extra_parameters: int
    step_ratio: float | None
    step_ratio_spread: tuple[float, float] | None
    memory_ratio: float | None
    live_ratio: float | None
    train_seconds: float
    settings: Mapping[str, JsonValue]
    provenance: tuple[Provenance, ...]

    @property
    def num_seeds(self) -> int:
        """Number of runs behind every mean."""
        return len(self.seeds)


def comparison(directory: Path, methods: Sequence[str] | None = None) -> list[Row]:
    """Gather one row a method from a comparison's directory.

    Args:
        directory: Holds `METHOD/seed-K/final.json` and, where cost was measured, `METHOD/cost.json`.
        methods: Names in the order of the rows; all that are found, by name, if None.

    Raises:
        ValueError: If a file is missing or invalid, or the runs do not follow one protocol.
    """
    names = list_methods(directory) if methods is None else list(methods)
    if not names:
        raise ValueError(f"directory: {directory} holds no METHOD/seed-K; give the directory of a comparison")
    if len(set(names)) < len(names):
        raise ValueError(f"methods: each must be given once, got {', '.join(names)}; drop the repeated ones")
    runs = {name: {run: read_final(run, name) for run in seed_directories(directory, name)} for name in names}
    reference, *others = [next(iter(finals.items())) for finals in runs.values()]
    for other in others:
        _check_same(reference, other, _protocol, free=("method", *RECIPE, *OWN_SETTINGS))
    for finals in runs.values():
        first, *repeats = finals.items()
        for repeat in repeats:
            _check_same(first, repeat, _protocol, free=OWN_SETTINGS)
        check_builds(finals)
    return [
        row_of(list(finals.values()), read_cost(directory, name, next(iter(finals.values())).model))
        for name, finals in runs.items()
    ]


def check_builds(finals: Mapping[Path, Final]) -> None:
    """Refuse runs of one method that differ in what they trained.

    Args:
        finals: The final record of each run directory.

    Raises:
        ValueError: They differ in parameters, or in the blocks that predict.
    """
    first, *repeats = finals.items()
    for repeat in repeats:
        _check_same(first, repeat, _build)


def _protocol(final: Final) -> dict[str, JsonValue]:
    named: dict[str, JsonValue] = {"model": final.model, "data": final.data, "epochs": final.epochs}
    return named | {f"settings.{key}": value for key, value in final.settings.items()}


def _build(final: Final) -> dict[str, JsonValue]:
    return {
        "title": final.title,
        "parameters": final.parameters,
        "extra_parameters": final.extra_parameters,
        "ensemble_weights": final.ensemble_weights,
        "blocks with a prediction": [error is not None for error in final.layer_errors],
        "an ensemble": final.ensemble_error is not None,
    }


def _check_same(
    first: tuple[Path, Final],
    second: tuple[Path, Final],
    facts: Callable[[Final], Mapping[str, JsonValue]],
    free: Sequence[str] = (),
) -> None:
    ours, theirs = facts(first[1]), facts(second[1])
    for name in {**ours, **theirs}:
        if name.removeprefix("settings.") not in free and ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{name} must be the same in every run of a comparison, got {ours.get(name)!r} in "
                f"{first[0] / 'final.json'} and {theirs.get(name)!r} in {second[0] / 'final.json'}; "
                "compare runs of one protocol"
            )


def mean_std(values: Sequence[float]) -> MeanStd:
    """Take mean and sample standard deviation over seeds."""
    return MeanStd(fmean(values), stdev(values) if len(values) > 1 else None)


def mean_std_or_none(values: Sequence[float | None]) -> MeanStd | None:
    """Take mean and standard deviation over seeds, None where no seed has a value."""
    present = [value for value in values if value is not None]
    return mean_std(present) if present else None


def row_of(finals: Sequence[Final], cost: Cost | None) -> Row:
    """Make the row of one method.

    Args:
        finals: Its finished runs, at least one, by ascending seed.
        cost: What a step of it costs; None where it was not measured.
    """
    first = finals[0]
    origins = [Provenance(final.hardware, final.versions, final.commit) for final in finals]
    return Row(
        method=first.method,
        title=first.title or first.method,
        model=first.model,
        data=first.data,
        epochs=first.epochs,
        seeds=tuple(final.seed for final in finals),
        test_error=mean_std([final.test_error for final in finals]),
        layer_errors=tuple(
            mean_std_or_none(errors) for errors in zip(*(final.layer_errors for final in finals), strict=True)
        ),
        ensemble_error=mean_std_or_none([final.ensemble_error for final in finals]),
        ensemble_weights=first.ensemble_weights,
        parameters=first.parameters,
        extra_parameters=first.extra_parameters,
        step_ratio=cost.step_ratio if cost else None,
        step_ratio_spread=cost.step_ratio_spread if cost else None,
        memory_ratio=cost.memory_ratio if cost else None,
        live_ratio=cost.live_ratio if cost else None,
        train_seconds=fmean(final.train_seconds for final in finals),
        settings={name: value for name, value in first.settings.items() if name not in OWN_SETTINGS},
        provenance=tuple(origin for i, origin in enumerate(origins) if origin not in origins[:i]),
    )
