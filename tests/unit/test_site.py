"""The documentation as a site: it builds without a complaint, holds every page, and fetches nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from localprop.methods import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "benchmarks", "examples")


def test_the_navigation_names_pages_that_are_there_and_every_guide():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    found = re.findall(r"[\w./-]+\.md|[\w./-]+/(?=')", str(nav))
    assert found
    assert not [page for page in found if not (ROOT / page).exists()]
    assert {f"docs/guide/{page.name}" for page in (ROOT / "docs" / "guide").glob("*.md")} <= set(found)


@pytest.mark.slow
def test_the_site_builds_strictly_and_stands_alone(tmp_path: Path):
    pytest.importorskip("mkdocs")
    source = tmp_path / "build" / "site-source"
    source.mkdir(parents=True)
    for name in PAGES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "build" / "site"
    assert all((site / "docs" / "methods" / name / "index.html").is_file() for name in CATALOGUE)
    api = (site / "docs" / "api" / "index.html").read_text()
    assert "iter_blocks" in api
    assert ":::" not in api
    for page in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?(https?:[^\"' >]+)", page.read_text())
        fetched += re.findall(r"<link[^>]* href=[\"']?(https?:[^\"' >]+)[^>]*rel=[\"']?stylesheet", page.read_text())
        assert not fetched, page
