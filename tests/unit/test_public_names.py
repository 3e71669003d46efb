"""The public names are there when they are asked for, and what asks for none of them does not wait for PyTorch."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import localprop
import localprop.train.fit  # imports nearly every submodule, which must not take the place of a public name


def test_public_names__are_there_and_found_by_star_and_dir() -> None:
    names: dict[str, object] = {}
    exec("from localprop import *", names)
    assert set(localprop.__all__) <= set(names)
    assert set(localprop.__all__) <= set(dir(localprop))
    with pytest.raises(AttributeError, match="no attribute 'splat'"):
        localprop.splat  # noqa: B018 # the mistake


def test_public_names__no_submodule_takes_the_place_of_another_thing() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(localprop.__path__)}
    for name in localprop.__all__:
        assert isinstance(getattr(localprop, name), ModuleType) == (name in submodules), name


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"], ["compare", "--help"], ["trian"]])
def test_command_line__does_not_wait_for_torch_without_need(argv: list[str]) -> None:
    code = f"import sys; from localprop.cli import main; main({argv}); print('torch' in sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(Path(localprop.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "False", done.stderr
