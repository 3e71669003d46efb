"""The shipped thing: a wheel that is built, installed apart from this tree, and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    # Built from a copy: setuptools leaves build/ and egg-info beside the sources, and would pick up stale files there.
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(directory.glob("*.whl"))


def test_wheel__holds_data_types_and_licences(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    embedded = [info for info in zipfile.ZipFile(wheel).infolist() if "fashion-mini" in info.filename]
    assert len(embedded) == 1
    assert embedded[0].file_size <= 6e6
    assert "localprop/py.typed" in names
    assert "localprop/data/embedded/NOTICE" in names
    assert {f"localprop/report/page/template/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_wheel__installs_and_trains_elsewhere(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, system_site_packages=True, with_pip=True)
    python = home / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    # If the tests run in a virtual environment themselves, "system" is the interpreter behind it: reach its packages
    # (a directory added this way does not run its own .pth files, so an editable install there is not seen).
    (own / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> str:
        return subprocess.run(
            [*words], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert str(own) in run(str(python), "-c", "import localprop; print(localprop.__file__)")
    script = home / "bin" / "localprop"
    assert "dcl" in {row["name"] for row in json.loads(run(str(script), "methods", "--json"))}
    settings = ["--model.width", "0.125", "--epochs", "1", "--limit-batches", "2", "--threads", "1"]
    run(str(python), "-m", "localprop", "train", "--model", "fc", *settings, "--out", "run")
    assert json.loads((tmp_path / "run" / "final.json").read_text())["data"] == "fashion-mini"
