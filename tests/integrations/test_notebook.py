"""The notebook: as it is stored, and run from top to bottom in a kernel of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first-steps.ipynb"
ABSOLUTE = re.compile(r"(?<![\w./:])(?:/(?:home|root|tmp|work|usr|opt|var|Users|mnt)\b|[A-Z]:\\)|\.venv")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def texts(output: Any) -> str:
    """Return what an output says, its pictures left out."""
    shown = {kind: content for kind, content in output.get("data", {}).items() if not kind.startswith("image/")}
    return f"{output.get('text', '')}{shown}{output.get('traceback', '')}"


def test_it_is_valid_small_and_names_no_place_of_a_machine() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 300_000
    for cell in notebook.cells:
        assert not ABSOLUTE.search(cell.source), cell.source
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert not ABSOLUTE.search(texts(output)), texts(output)
            assert len(texts(output)) < 4_000


def test_its_outputs_are_those_of_one_run_from_top_to_bottom() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4
    assert any("test error" in texts(output) for cell in code for output in cell.outputs)


def test_its_links_lead_somewhere() -> None:
    links = [link for cell in read().cells for link in re.findall(r"\]\(([^)#]+)\)", cell.source)]
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2] / "src")  # the kernel shall run these sources
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    said = "".join(texts(output) for cell in notebook.cells for output in cell.get("outputs", []))
    table = dict(re.findall(r"^(dcl|pred|bp) +(\S.*)$", said, re.MULTILINE))
    errors = {name: [float(error) for error in line.split() if error != "-"] for name, line in table.items()}
    assert errors["dcl"][0] > errors["dcl"][1] > errors["dcl"][2]  # what the text says of depth
    assert max(errors["pred"]) < 30
    assert len(errors["bp"]) == 1
    assert errors["bp"][0] < 30
