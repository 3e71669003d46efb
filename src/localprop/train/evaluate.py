"""Measure the errors of a trained network again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from localprop.data.store import ImageSet
from localprop.infer.ensemble import learn_weights
from localprop.infer.evaluate import evaluate
from localprop.train.assemble import RunData, evaluation_pairs, load_data
from localprop.train.stored import StoredRun, load_run


def load_data_of(run: StoredRun) -> RunData:
    """Load the data of a stored run.

    Raises:
        ValueError: They cannot be read, or are not what the run was trained on.
    """
    loaded = load_data(run.config)
    if (loaded.data.class_names, loaded.data.image_shape) != (run.facts.class_names, run.facts.image_shape):
        raise ValueError(
            f"data: the run was trained on images of shape {run.facts.image_shape} and classes "
            f"{run.facts.class_names}, "
            f"{run.config.data.name} now gives {loaded.data.image_shape} and {loaded.data.class_names}"
        )
    return loaded


def evaluate_run(directory: Path, *, allow_imports: bool = False) -> dict[str, Any]:
    """Evaluate a run's newest state on the test images (and its validation images, if it held some out).

    Args:
        directory: A run directory.
        allow_imports: Whether import paths in its config.yaml may be imported.

    Returns:
        Errors in percent, named as in final.json.

    Raises:
        ValueError: The run or its data cannot be read.
    """
    run = load_run(directory, allow_imports=allow_imports)
    loaded = load_data_of(run)

    def pairs(images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_pairs(run.config, images, run.facts, run.rule, run.device)

    learned = None if loaded.validation is None else learn_weights(run.rule, pairs(loaded.validation))
    found = evaluate(run.rule, pairs(loaded.data.test), learned)
    row: dict[str, Any] = {
        "method": run.config.method.name,
        "step": run.step,
        "test_images": found.num_images,
        "test_error": found.error,
        "layer_errors": list(found.layer_errors),
        "ensemble_error": found.ensemble_errors[run.config.ensemble],
        "ensemble_weights": run.config.ensemble,
        "ensemble_errors": dict(found.ensemble_errors),
        "learned_weights": learned,
    }
    if loaded.validation is not None:
        row["validation_error"] = evaluate(run.rule, pairs(loaded.validation)).error
    return row
