"""The example of a third party's method is installed, listed and trained like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import ROOT, SOURCE

EXAMPLE = ROOT / "examples" / "nearest-mean"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("installed")
    source = directory / "source"  # a build leaves files beside what it builds
    shutil.copytree(EXAMPLE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", str(directory / "site"), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory / "site"), str(SOURCE)]), "OMP_NUM_THREADS": "1"}


def run(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "localprop", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_and_cited(installed: dict[str, str]):
    rows = {row["name"]: row for row in json.loads(run(["methods", "--json"], installed))}
    assert rows["nearest-mean"]["auxiliary_parameters"] == "none"
    assert "dcl" in rows
    assert run(["cite", "nearest-mean"], installed).startswith("@misc{nearestmean")


def test_it_trains_evaluates_and_learns(installed: dict[str, str], tmp_path: Path):
    out = tmp_path / "run"
    flags = [
        "--model",
        "conv",
        "--model.width",
        "0.25",
        "--data",
        "fashion-mini",
        "--epochs",
        "1",
        "--batch-size",
        "64",
    ]
    run(
        [
            "train",
            "--method",
            "nearest-mean",
            "--method.momentum",
            "0.8",
            *flags,
            "--limit-batches",
            "30",
            "--out",
            str(out),
        ],
        installed,
    )
    final = json.loads((out / "final.json").read_text())
    assert final["extra_parameters"] == 0
    assert max(final["layer_errors"]) < 80  # chance is 90
    run(["evaluate", str(out)], installed)
