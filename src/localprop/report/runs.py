"""Read and validate the files that runs and comparisons leave: final.json, cost.json, metrics.jsonl."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

Percent = Annotated[float, Field(ge=0, le=100)]
Ratio = Annotated[float, Field(gt=0)]


class Record(BaseModel):
    """What reports read of a file: finite numbers of the right kinds; what they do not read is let be."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class Final(Record):
    """What a finished run says of itself; the part of final.json that reports read."""

    method: str
    title: str | None = None
    model: str
    data: str
    seed: int
    epochs: Annotated[float, Field(ge=0)]
    test_error: Percent
    layer_errors: tuple[Percent | None, ...]
    ensemble_error: Percent | None = None
    ensemble_weights: str | None = None
    parameters: Annotated[int, Field(ge=0)]
    extra_parameters: Annotated[int, Field(ge=0)]
    step_seconds: Annotated[float, Field(gt=0)] | None = None
    peak_memory_bytes: Annotated[int, Field(ge=0)] | None = None
    train_seconds: Annotated[float, Field(ge=0)]
    weights_sha256: str | None = None
    block_names: tuple[str, ...] | None = None
    test_images: int | None = None
    versions: dict[str, JsonValue]
    commit: str | None = None
    settings: dict[str, JsonValue]
    hardware: dict[str, JsonValue]

    @model_validator(mode="after")
    def _every_block_has_a_name(self) -> Final:
        if self.block_names and len(self.block_names) != len(self.layer_errors):
            raise ValueError(f"{len(self.block_names)} block_names, but {len(self.layer_errors)} layer_errors")
        return self


class Cost(Record):
    """Time and memory of one method as multiples of backprop written by hand; None where not measured."""

    method: str
    model: str
    step_ratio: Ratio | None = None
    step_ratio_spread: tuple[Ratio, Ratio] | None = None
    memory_ratio: Ratio | None = None
    live_ratio: Ratio | None = None


class Evaluation(Record):
    """One evaluation during training."""

    step: int
    epoch: float
    split: str
    error: Percent
    layer_errors: tuple[Percent | None, ...]


RecordT = TypeVar("RecordT", bound=Record)


def parse(record: type[RecordT], text: str | bytes, where: str, fix: str = "repeat this run") -> RecordT:
    """Read a record from JSON.

    Args:
        record: What it must be.
        text: The JSON.
        where: The file, for the message.
        fix: What to do about it, for the message.

    Raises:
        ValueError: It is not valid.
    """
    try:
        return record.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()
        )
        raise ValueError(f"{where} is not valid: {problems}; {fix}") from None


def list_methods(directory: Path) -> list[str]:
    """List the methods that a comparison has run, by name."""
    return sorted({seed.parent.name for seed in directory.glob("*/seed-*") if seed.is_dir()})


def seed_directories(directory: Path, method: str) -> list[Path]:
    """List the runs of one method in the order of their seeds.

    Raises:
        ValueError: If the method has no run in the directory.
    """
    matches = {path: re.fullmatch(r"seed-(\d+)", path.name) for path in (directory / method).glob("seed-*")}
    seeds = {path: int(match[1]) for path, match in matches.items() if match}
    if not seeds:
        found = ", ".join(list_methods(directory)) or "none"
        raise ValueError(f"methods: {method!r} has no run in {directory}; methods found there: {found}")
    return sorted(seeds, key=lambda path: seeds[path])


def read_final_of(run: Path) -> Final:
    """Read the final record of a run.

    Raises:
        ValueError: If the file is missing or is not valid.
    """
    path = run / "final.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the run has not finished; resume it")
    return parse(Final, path.read_bytes(), str(path))


def read_final(run: Path, method: str) -> Final:
    """Read the final record of one run of a comparison.

    Raises:
        ValueError: If the file is missing, is not valid, or speaks of another method or seed.
    """
    path = run / "final.json"
    final = read_final_of(run)
    if (final.method, f"seed-{final.seed}") != (method, run.name):
        raise ValueError(
            f"{path} is of method {final.method!r} and seed {final.seed}, but stands where method {method!r} "
            f"and {run.name} belong; repeat this run"
        )
    return final


def read_cost(directory: Path, method: str, model: str) -> Cost | None:
    """Read the cost of one method from METHOD/cost.json, or None where it was not measured.

    Raises:
        ValueError: If the file is not valid, or speaks of another method or model.
    """
    path = directory / method / "cost.json"
    if not path.is_file():
        return None
    cost = parse(Cost, path.read_bytes(), str(path), "delete it to measure again")
    if (cost.method, cost.model) != (method, model):
        raise ValueError(
            f"{path} is of method {cost.method!r} and model {cost.model!r}, but its runs are of "
            f"{method!r} and {model!r}; measure it again"
        )
    return cost


def read_evaluations(run: Path, split: str = "test") -> list[Evaluation]:
    """Read the evaluations of one run in the order of their steps.

    A resumed run may have written a step twice; the later row counts.

    Raises:
        ValueError: If the file is missing, has an invalid row, or has no evaluation on the split.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; repeat this run")
    by_step: dict[int, Evaluation] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number},"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid: {error}; repeat this run") from None
        if isinstance(row, dict) and row.get("kind") == "evaluation" and row.get("split") == split:
            evaluation = parse(Evaluation, line, where)
            by_step[evaluation.step] = evaluation
    if not by_step:
        raise ValueError(f"{path} has no evaluation on the {split!r} split; repeat this run")
    return [by_step[step] for step in sorted(by_step)]
