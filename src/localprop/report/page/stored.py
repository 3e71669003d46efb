"""Read and validate what `localprop exits` and `localprop explain` left in a run: exits.json and explain.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, model_validator

from localprop.report.runs import Final, Percent, Ratio, Record, parse, read_evaluations

Share = Annotated[float, Field(ge=0, le=1)]
Scalar = str | bool | int | float | None


class Threshold(Record):
    """What leaving at a threshold gives; without one, the whole network."""

    threshold: Annotated[float, Field(ge=0, le=1)] | None
    validation_error: Percent
    test_error: Percent
    shares: tuple[Share, ...]
    flops_ratio: Annotated[float, Field(ge=0)]
    throughput_ratio: Ratio
    throughput_ratio_spread: tuple[Ratio, Ratio]
    images_per_second: Ratio


class BlockExit(Record):
    """A block that answers by itself."""

    block: str
    error: Percent
    calibration_error: Percent
    calibrated_error: Percent
    temperature: Ratio | None
    flops_ratio: Annotated[float, Field(ge=0)]


class Exits(Record):
    """The part of exits.json that the page reads."""

    method: str
    step: int
    by: str
    max_error_increase: float
    validation_images: int
    test_images: int
    rounds: int
    batch_size: int
    threads: int
    device: str
    whole: Threshold
    chosen: Threshold
    sweep: tuple[Threshold, ...]
    blocks: tuple[BlockExit, ...]


class Pair(Record):
    """How often two classes are mixed up, and how alike their embeddings are."""

    classes: tuple[str, str]
    cosine: float
    confusion_percent: Percent | None


Matrix = tuple[tuple[float | None, ...], ...]
Point = tuple[float, float]


class Analysis(Record):
    """One analysis of explain.json: its rows, and the details that the page draws of some."""

    title: str
    rows: Annotated[tuple[dict[str, Scalar], ...], Field(min_length=1)]
    matrix: Matrix | None = None
    columns: tuple[str, ...] | None = None
    against: str | None = None
    nuisance: str | None = None
    classes: tuple[str, ...] = ()
    super_of: tuple[int, ...] = ()
    cosines: dict[str, Matrix] = Field(default_factory=dict)
    principal_components: tuple[Point, ...] = ()
    explained_variance: tuple[float, ...] = ()
    t_sne: tuple[Point, ...] | None = None
    pairs: dict[str, tuple[Pair, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _matrices_fit_their_names(self) -> Analysis:
        columns = self.columns or self.rows
        if self.matrix is not None and not _has_shape(self.matrix, len(self.rows), len(columns)):
            raise ValueError(f"matrix must have {len(self.rows)} rows of {len(columns)} numbers")
        for name, matrix in self.cosines.items():
            if not _has_shape(matrix, len(self.classes), len(self.classes)):
                raise ValueError(f"cosines of {name} must have {len(self.classes)} rows and columns, as classes")
        for field in ("principal_components", "t_sne"):
            if (points := getattr(self, field)) and len(points) != len(self.classes):
                raise ValueError(f"{field} must have {len(self.classes)} points, as classes")
        return self


class Explained(Record):
    """The part of explain.json that the page reads."""

    method: str
    model: str
    data: str
    step: int
    train_images: int
    test_images: int
    analyses: dict[str, Analysis]
    skipped: dict[str, str]


def read_exits(run: Path, final: Final) -> Exits | None:
    """Read what early exits of a run give, or None where it was not measured.

    Raises:
        ValueError: The file is not valid, or is of another run or another state of it.
    """
    path, fix = run / "exits.json", f"measure again: localprop exits {run}"
    if not path.is_file():
        return None
    exits = parse(Exits, path.read_bytes(), str(path), fix)
    _check_same(path, {"method": (exits.method, final.method), "step": (exits.step, _last_step(run))}, fix)
    for row in (exits.whole, exits.chosen, *exits.sweep):
        if len(row.shares) != len(final.layer_errors):
            raise ValueError(
                f"{path} has {len(row.shares)} shares at a threshold, the network {len(final.layer_errors)} blocks; "
                f"{fix}"
            )
    return exits


def read_explained(run: Path, final: Final) -> Explained | None:
    """Read what the blocks of a run know, or None where it was not analysed.

    Raises:
        ValueError: The file is not valid, or is of another run or another state of it.
    """
    path, fix = run / "explain" / "explain.json", f"analyse again: localprop explain {run}"
    if not path.is_file():
        return None
    found = parse(Explained, path.read_bytes(), str(path), fix)
    same: dict[str, tuple[JsonValue, JsonValue]] = {
        "method": (found.method, final.method),
        "model": (found.model, final.model),
        "data": (found.data, final.data),
        "step": (found.step, _last_step(run)),
    }
    _check_same(path, same, fix)
    return found


def _has_shape(matrix: Matrix, rows: int, columns: int) -> bool:
    return len(matrix) == rows and all(len(row) == columns for row in matrix)


def _last_step(run: Path) -> int:
    return read_evaluations(run)[-1].step


def _check_same(path: Path, facts: Mapping[str, tuple[Any, Any]], fix: str) -> None:
    for name, (told, wanted) in facts.items():
        if told != wanted:
            raise ValueError(f"{path} is of {name} {told!r}, but the run beside it of {name} {wanted!r}; {fix}")
