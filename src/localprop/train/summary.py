"""The numbers of a finished run: the content of final.json."""

from __future__ import annotations

import json
import statistics
from typing import Any

from localprop.train.checkpoint import weights_sha256
from localprop.train.provenance import commit, hardware, versions
from localprop.train.training import Training
from localprop.train.weights import WARM_UP


def summary(training: Training) -> dict[str, Any]:
    """Return the content of final.json of a run that has come to its end."""
    config, rule, found, watch = training.config, training.rule, training.evaluation, training.watch
    assert found is not None
    in_network = sum(parameter.numel() for parameter in rule.net.parameters())
    in_groups = {parameter for group in training.executor.groups.values() for parameter in group}
    learned = {*rule.net.parameters(), *rule.solved_parameters()}
    trained = sum(parameter.numel() for parameter in in_groups | learned)
    return {
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "epochs": config.epochs,
        "test_error": found.error,
        "layer_errors": list(found.layer_errors),
        "ensemble_error": found.ensemble_errors[config.ensemble],
        "ensemble_weights": config.ensemble,
        "ensemble_errors": dict(found.ensemble_errors),
        "learned_weights": training.learned_weights,
        "test_images": found.num_images,
        "block_names": list(rule.net.names),
        "parameters": in_network,
        "extra_parameters": trained - in_network,
        "step_seconds": statistics.median(watch.step_seconds) if watch.step_seconds else None,
        "peak_memory_bytes": training.peak_memory_bytes,
        "train_seconds": watch.train_seconds,
        "warmup_seconds": _warmup_seconds(training),
        "weights_sha256": weights_sha256(rule.state_dict()),
        "settings": config.to_dict(),
        "hardware": hardware(training.device),
        "versions": versions(),
        "commit": commit(),
    }


def _warmup_seconds(training: Training) -> float | None:
    if training.config.warmup_epochs is None:
        return None
    content = json.loads((training.directory / WARM_UP / "final.json").read_text(encoding="utf-8"))
    return float(content["train_seconds"])
