"""Directories of runs as `train`, `compare`, `exits` and `explain` leave them, without the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

BLOCKS = ("conv1", "conv2", "classifier")
CLASSES = ("cat", "dog", "owl", "yak")
STEP = 156
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"quotes' & <b>bold</b>",
    "a\nnewline\u2028and a separator",
    "🦉 emoji %{x} $\\alpha$",
    "שלום \u202eRTL",
    "long" * 50,
    '<a href="javascript:alert(3)">link</a>',
)
"""Names that a page must show as the text they are."""


def final(method: str = "dcl", seed: int = 0, **changes: Any) -> dict[str, Any]:
    predicts = method != "bp"
    error = 20.0 + seed + len(method)
    record = {
        "method": method,
        "model": "conv",
        "data": "fashion-mini",
        "seed": seed,
        "epochs": 2,
        "test_error": error,
        "layer_errors": [error + 10, error + 5, error] if predicts else [None, None, error],
        "ensemble_error": error - 1,
        "ensemble_weights": "uniform",
        "block_names": list(BLOCKS),
        "parameters": 463_000,
        "extra_parameters": 5120 if predicts else 0,
        "step_seconds": 0.031,
        "peak_memory_bytes": 200_000_000,
        "train_seconds": 61.0 + seed,
        "weights_sha256": "0123456789abcdef" * 4,
        "versions": {"torch": "2.9.1", "python": "3.12.1"},
        "commit": "0123abc",
        "hardware": {"cpu": "Some CPU", "threads": 1},
        "settings": {
            "method": {"name": method, "temperature": 1.0},
            "model": {"name": "conv", "width": 0.25},
            "data": {"name": "fashion-mini"},
            "optimizer": {"name": "AdamW", "lr": 0.0005},
            "epochs": 2,
            "batch_size": 128,
            "seed": seed,
            "validation": 0.1,
            "threads": 1,
            "log": [],
        },
    }
    return record | changes


def write_run(run: Path, record: dict[str, Any], evaluations: int = 2) -> Path:
    """Write a run directory with an evaluation an epoch, of held-out images and, at the end, of test images."""
    run.mkdir(parents=True)
    (run / "final.json").write_text(json.dumps(record))
    rows: list[dict[str, Any]] = [{"kind": "step", "step": 10, "lr": 0.1}]
    for number in range(1, evaluations + 1):
        fall = 1 + 0.5 * (evaluations - number) / evaluations
        layers = [None if error is None else min(100.0, fall * error) for error in record["layer_errors"]]
        epoch = record["epochs"] * number / evaluations
        place = {"kind": "evaluation", "step": STEP * number // evaluations, "epoch": epoch}
        for split in ("validation", "test") if number == evaluations else ("validation",):
            rows.append(
                {**place, "split": split, "error": min(100.0, fall * record["test_error"]), "layer_errors": layers}
            )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def write_comparison(directory: Path, methods: Sequence[str] = ("bp", "dcl", "pred"), seeds: int = 2) -> Path:
    """Write a comparison; of the last method the cost was not measured."""
    for place, method in enumerate(methods):
        for seed in range(seeds):
            write_run(directory / method / f"seed-{seed}", final(method, seed))
        spread = [0.7, 0.9 + 0.2 / (1 + place)]
        cost = {"step_ratio": 0.8, "step_ratio_spread": spread, "memory_ratio": 1.2 / (1 + place)}
        if place < len(methods) - 1:
            record = {"method": method, "model": "conv", "live_ratio": 0.5, **cost}
            (directory / method / "cost.json").write_text(json.dumps(record))
    return directory


def write_exits(run: Path, **changes: Any) -> None:
    """Write what `localprop exits` leaves of a network of three blocks."""
    record = json.loads((run / "final.json").read_text())

    def row(threshold: float | None, error: float, shares: Sequence[float], flops: float) -> dict[str, Any]:
        return {
            "threshold": threshold,
            "validation_error": error - 0.5,
            "test_error": error,
            "shares": list(shares),
            "flops": 1e6 * flops,
            "flops_ratio": flops,
            "throughput_ratio": 1 / max(flops, 0.1),
            "throughput_ratio_spread": [0.9 / max(flops, 0.1), 1.1 / max(flops, 0.1)],
            "images_per_second": 1000 / max(flops, 0.1),
            "batch_seconds": 0.1,
        }

    block = {"agreement": 90.0, "temperature": None, "calibration_error": 5.0, "calibrated_error": 1.0, "flops": 1}
    content = {
        "method": record["method"],
        "step": STEP,
        "by": "confidence",
        "max_error_increase": 0.5,
        "validation_images": 100,
        "test_images": 200,
        "rounds": 7,
        "batch_size": 128,
        "threads": 1,
        "device": "cpu",
        "whole": row(None, 20, (0, 0, 1), 1),
        "chosen": row(0.75, 20.5, (0.5, 0.25, 0.25), 0.5),
        "sweep": [
            row(0.0, 40, (1, 0, 0), 0.05),
            row(0.5, 25, (0.75, 0.25, 0), 0.25),
            row(0.99, 20, (0, 0.5, 0.5), 0.9),
        ],
        "blocks": [
            {**block, "block": name, "error": 40.0 - 10 * place, "flops_ratio": 0.05 + 0.4 * place}
            for place, name in enumerate(record["block_names"])
        ],
    }
    (run / "exits.json").write_text(json.dumps(content | changes))


def write_explained(run: Path, classes: Sequence[str] = CLASSES, **changes: Any) -> None:
    """Write what `localprop explain` leaves, with a picture of two of its analyses."""
    record = json.loads((run / "final.json").read_text())
    (run / "explain").mkdir()
    blocks = record["block_names"]
    count = len(classes)
    rows = [{"block": place, "name": name} for place, name in enumerate(blocks)]
    cosines = [[1.0 if i == j else ((i + j) % 5 - 2) / 4 for j in range(count)] for i in range(count)]
    places = [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs = [
        {"classes": [classes[i], classes[j]], "cosine": cosines[i][j], "confusion_percent": float((7 * i + j) % 11)}
        for i, j in places
    ]
    seen = {"image": 0, "class": classes[0], "first": classes[1], "first_saliency": 2.0, "second": classes[2]}
    analyses: dict[str, Any] = {
        "probes": {"rows": [{**row, "test_error": 20.0, "train_error": 10.0, "own_error": None} for row in rows]},
        "collapse": {"rows": [{**row, "nc1": 3.0, "nc2_equinorm": 0.5, "nc3": None} for row in rows]},
        "cka": {"rows": rows, "matrix": [[1.0, 0.5], [0.5, None], [0.2, 0.9]], "columns": blocks[:2], "against": "bp"},
        "memorisation": {"rows": [{"name": name, "train_error": 1.0, "test_error": 9.0} for name in blocks]},
        "information": {"rows": [{**row, "class_nats": 1.5, "nuisance_nats": -0.1} for row in rows]},
        "embeddings-over-training": {
            "rows": [{"name": "shared", "epoch": epoch, "mean_norm": 1.0, "effective_rank": None} for epoch in (1, 2)]
        },
        "unheard-of": {"rows": [{"what": "a row of an analysis that the page does not know", "number": 3}]},
        "embeddings": {
            "rows": [{"dictionary": "shared", "classes": count}],
            "classes": list(classes),
            "cosines": {"shared": cosines},
            "principal_components": [[float(place % 3), float(place)] for place in range(count)],
            "explained_variance": [0.6, 0.3],
            "t_sne": None,
        },
        "confusion": {
            "rows": [{**row, "spearman": 0.4, "most_confused": f"{classes[0]} / {classes[1]}"} for row in rows],
            "pairs": dict.fromkeys(blocks, pairs),
        },
        "saliency": {"rows": [{**row, **seen} for row in rows]},
        "filters": {"rows": [{"layer": "conv1.0", "filters": 8, "size": "1 x 3 x 3", "dead": 0}]},
    }
    for name in ("saliency", "filters"):
        Image.new("RGB", (900, 300), "navy").save(run / "explain" / f"{name}.png")
    content = {
        "run": str(run),
        **{name: record[name] for name in ("method", "model", "data")},
        "step": STEP,
        "train_images": 96,
        "test_images": 96,
        "analyses": {name: {"title": f"title of {name}", **analysis} for name, analysis in analyses.items()},
        "skipped": {"super-labels": "fashion-mini has no super-classes; cifar100 has"},
    }
    (run / "explain" / "explain.json").write_text(json.dumps(content | changes))


def write_hostile(directory: Path) -> Path:
    """Write a run whose every name is hostile."""
    record = final(
        HOSTILE[0],
        model=HOSTILE[1],
        data=HOSTILE[2],
        commit=HOSTILE[3],
        block_names=list(HOSTILE[4:7]),
        versions={HOSTILE[7]: HOSTILE[1]},
        hardware={"cpu": HOSTILE[0]},
    )
    record["settings"] |= {"method": {"name": HOSTILE[1]}, "note": list(HOSTILE)}
    run = write_run(directory / HOSTILE[0], record)
    write_exits(run, by=HOSTILE[1], device=HOSTILE[0])
    write_explained(run, HOSTILE, skipped={HOSTILE[0]: HOSTILE[1], "gradients": HOSTILE[1]})
    return run
