"""Every method of the catalogue is proved against a twin: the parity tests say which in `PROVED`."""

from __future__ import annotations

import importlib
from pathlib import Path

from localprop.methods import CATALOGUE


def test_every_method_of_the_catalogue_has_a_twin():
    files = sorted(Path(__file__).parent.glob("test_*_parity.py"))
    modules = [importlib.import_module(f"tests.parity.{file.stem}") for file in files]
    proved = [name for module in modules for name in getattr(module, "PROVED", ())]
    assert sorted(proved) == sorted(CATALOGUE)
