"""Early exits of a finished run: calibrated and chosen on held-out images, reported and timed on the test images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localprop.bench.measure import WARM_UP_ROUNDS, in_rounds, timed
from localprop.data.store import ImageSet
from localprop.functional.calibration import MEASURES, Measure, expected_calibration_error, fit_temperature
from localprop.infer.agreement import agreements, stays_right
from localprop.infer.evaluate import percent
from localprop.infer.exits import ExitPolicy, check_early_exits, predict_early
from localprop.infer.sweep import Outcome, Recorded, Sweep, cheapest, count_arithmetic, record_exits, spread
from localprop.rules import Rule
from localprop.train.assemble import RunData, evaluation_pairs
from localprop.train.evaluate import load_data_of
from localprop.train.stored import StoredRun, load_run

NUM_POINTS = 8  # thresholds of the sweep
TIMED_IMAGES, TIMED_BATCHES = 1024, 256  # at most
ROUNDS, ROUND_SECONDS = (7, 40), 20.0


def exits_run(
    directory: Path,
    *,
    measure: Measure = "confidence",
    max_error_increase: float = 0.5,
    batch_size: int | None = None,
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Calibrate the exits of a run's newest state, choose a threshold, and measure what early exits give.

    Temperatures and the threshold come from the validation images of the run alone; errors and times are those of test
    images. The whole network and the exiting one answer the same images, in turn, round after round.

    Args:
        directory: A run directory.
        measure: What makes a block sure of a sample.
        max_error_increase: Points of error that early exits may cost on the validation images.
        batch_size: Images a batch where time is measured; default that of the run.
        allow_imports: Whether import paths in the run's config.yaml may be imported.

    Returns:
        `blocks`, one row a block that makes a prediction; `sweep`, one row a threshold; `chosen` and `whole`, such rows
        too. Errors in percent, `throughput_ratio` as a multiple of the whole network's.

    Raises:
        ValueError: The run or its data cannot be read, it held no images out, its blocks cannot be left early, or a
            setting is out of its range.
    """
    if measure not in MEASURES:
        raise ValueError(f"--by {measure}: must be one of {', '.join(MEASURES)}")
    if not 0 <= max_error_increase < math.inf:
        raise ValueError(f"--max-error-increase {max_error_increase}: must be 0 or more points of error, such as 0.5")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: must be at least 1")
    run = load_run(directory, allow_imports=allow_imports)
    if not run.config.validation:
        raise ValueError(
            f"{directory}: the run held no images out; calibrated on images that it was trained on, or chosen by the "
            "test images, its exits would look better than they are; train again with --validation 0.1"
        )
    threads = torch.get_num_threads()
    try:
        if run.config.threads is not None:
            torch.set_num_threads(run.config.threads)
        return _measured(run, load_data_of(run), measure, max_error_increase, batch_size or run.config.batch_size)
    finally:
        torch.set_num_threads(threads)


def _measured(
    run: StoredRun, loaded: RunData, measure: Measure, max_error_increase: float, batch_size: int
) -> dict[str, Any]:
    rule, test = run.rule, loaded.data.test
    assert loaded.validation is not None
    sample = next(_inputs(run, test.subset([0]), 1))
    try:
        check_early_exits(rule, sample)
    except ValueError as error:
        raise ValueError(
            f"method {run.config.method.name}: {str(error).removeprefix('exits: ')}; train by a method whose blocks "
            "predict, such as pred, dcl or mono-forward"
        ) from error
    arithmetic = count_arithmetic(rule, sample)
    held_out = record_exits(rule, evaluation_pairs(run.config, loaded.validation, run.facts, rule, run.device))
    temperatures = _temperatures(rule, held_out)
    policy = ExitPolicy(measure, math.inf, tuple(1.0 if t is None else t for t in temperatures))
    candidates = Sweep(held_out, measure, policy.temperatures, arithmetic).candidates()
    chosen, points = cheapest(candidates, max_error_increase), spread(candidates, NUM_POINTS)
    recorded = record_exits(rule, evaluation_pairs(run.config, test, run.facts, rule, run.device))
    on_test = Sweep(recorded, measure, policy.temperatures, arithmetic)
    shown = [candidates[-1], chosen, *points]
    num_timed = min(len(test), TIMED_IMAGES, TIMED_BATCHES * batch_size)
    timed_batches = list(_inputs(run, test.subset(torch.linspace(0, len(test) - 1, num_timed).long()), batch_size))
    policies = [replace(policy, threshold=one.threshold) for one in shown[1:]]
    answers: list[Callable[[Tensor], object]] = [_whole(rule, sample, policy)]
    answers += [partial(predict_early, rule, policy=one) for one in policies]
    times = _times(timed_batches, answers, run.device)
    rows = [
        _outcome_row(before, on_test.at(before.threshold), on_test.arithmetic.whole, seconds, times[0])
        | {
            "images_per_second": num_timed / statistics.median(seconds),
            "batch_seconds": statistics.median(seconds) / len(timed_batches),
        }
        for before, seconds in zip(shown, times, strict=True)
    ]
    return {
        "method": run.config.method.name,
        "step": run.step,
        "by": measure,
        "max_error_increase": max_error_increase,
        "validation_images": len(held_out.y),
        "test_images": len(recorded.y),
        "timed_images": num_timed,
        "rounds": len(times[0]),
        "batch_size": min(batch_size, num_timed),
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "whole": rows[0],
        "chosen": rows[1],
        "sweep": rows[2:],
        "blocks": _block_rows(rule, recorded, temperatures, on_test),
        "agreements": agreements(_predicted(recorded), recorded.y),
    }


def _temperatures(rule: Rule, held_out: Recorded) -> list[float | None]:
    temperatures: list[float | None] = []
    for name, logits in zip(rule.net.names, held_out.exits, strict=True):
        try:
            temperatures.append(None if logits is None else fit_temperature(logits, held_out.y))
        except ValueError as error:
            raise ValueError(f"block {name}: {error}") from error
    return temperatures


def _block_rows(
    rule: Rule, recorded: Recorded, temperatures: Sequence[float | None], sweep: Sweep
) -> list[dict[str, Any]]:
    """Describe every block that makes a prediction, on the test images; the last by the network's answer."""
    y, total = recorded.y, len(recorded.y)
    answer = recorded.answer.argmax(1)
    rows: list[dict[str, Any]] = []
    kept = iter(stays_right(_predicted(recorded), y))
    for index, logits in enumerate(recorded.exits):
        if logits is None:
            continue
        temperature = temperatures[index]
        before = expected_calibration_error(logits, y)
        after = before if temperature is None else expected_calibration_error(logits, y, temperature=temperature)
        predicted = logits.argmax(1)
        rows.append(
            {
                "block": rule.net.names[index],
                "error": percent(int((predicted != y).sum()), total),
                "agreement": percent(int((predicted == answer).sum()), total),
                "stays_right": next(kept),
                "temperature": temperature,
                "calibration_error": 100 * before,
                "calibrated_error": 100 * after,
                "flops": sweep.arithmetic.early[index],
                "flops_ratio": sweep.arithmetic.early[index] / sweep.arithmetic.whole,
            }
        )
    return rows


def _predicted(recorded: Recorded) -> Tensor:
    return torch.stack([logits.argmax(1) for logits in recorded.exits if logits is not None])


def _outcome_row(
    held_out: Outcome, test: Outcome, whole_flops: int, seconds: Sequence[float], whole_seconds: Sequence[float]
) -> dict[str, Any]:
    ratios = [whole / own for own, whole in zip(seconds, whole_seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "threshold": None if math.isinf(test.threshold) else test.threshold,
        "validation_error": held_out.error,
        "test_error": test.error,
        "shares": list(test.shares),
        "flops": test.flops,
        "flops_ratio": test.flops / whole_flops,
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_spread": [quartiles[0], quartiles[2]],
    }


def _whole(rule: Rule, sample: Tensor, never: ExitPolicy) -> Callable[[Tensor], object]:
    """Return what gives the network's answer at the least cost: its plain module, where the answer is that module's."""

    def plain(x: Tensor) -> Tensor:
        with torch.no_grad(), rule.context(0):
            logits: Tensor = rule.net(x)
        return logits

    answer = predict_early(rule, sample, never).logits
    if torch.allclose(plain(sample).to(answer.dtype), answer, rtol=1e-3, atol=1e-5):
        return plain
    return partial(predict_early, rule, policy=never)


def _times(
    batches: Sequence[Tensor], answers: Sequence[Callable[[Tensor], object]], device: torch.device
) -> list[list[float]]:
    """Return the seconds that each takes for all batches, round by round."""

    def answer_all(answer: Callable[[Tensor], object]) -> None:
        for x in batches:
            answer(x)

    measurements = [partial(timed, partial(answer_all, answer), device) for answer in answers]
    for _ in range(WARM_UP_ROUNDS):
        for measurement in measurements:
            measurement()
    return in_rounds(measurements, seconds=ROUND_SECONDS, rounds=ROUNDS)


def _inputs(run: StoredRun, images: ImageSet, batch_size: int) -> Iterator[Tensor]:
    config = replace(run.config, limit_batches=None, batch_size=batch_size)
    return (x for x, _ in evaluation_pairs(config, images, run.facts, run.rule, run.device))
