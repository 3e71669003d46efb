"""The documentation is run: Python blocks, command lines, links, method pages, doctests."""

from __future__ import annotations

import doctest
import importlib
import io
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import localprop
from localprop import methods, models
from localprop.cli import main
from localprop.train import compare

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
RUN = [page for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if page.exists()]
LINKED = [*RUN, *(page for page in (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if page.exists())]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHAPES = {"mnist": (28, 28), "fashion-mnist": (28, 28), "cifar10": (32, 32, 3)}
COMPARES = {DOCS / "guide" / f"{name}.md" for name in ("train", "report")}
"""The pages whose comparison is run: it starts four processes. Those of others are checked setting by setting."""
MEASURING = ("train", "trained-weights", "what-a-step-costs", "what-a-layer-knows", "early-exits", "export", "report")
PROCESSES = {DOCS / "gallery.md", *(DOCS / "guide" / f"{name}.md" for name in MEASURING)}
"""Pages with many commands that train or measure; tests of the command line run the same commands."""
MEASURING_COMMANDS = ("exits", "explain", "export", "report")
OPTIONAL = {"wandb", "tensorboard", "lightning"}


class Block(NamedTuple):
    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words after `localprop` of every command line of a block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue  # output
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:3] in (["python", "-m", "localprop"], ["python3", "-m", "localprop"]):
            words = words[2:]
        if words[:1] == ["localprop"]:
            yield words[1:]


def value(words: list[str], flag: str, default: str) -> str:
    return words[words.index(flag) + 1] if flag in words else default


def each_method(words: list[str]) -> list[list[str]]:
    """Turn a comparison into commands that check its settings for every method."""
    rest = words[1:]
    for flag in ("--methods", "--seeds"):
        if flag in rest:
            del rest[rest.index(flag) : rest.index(flag) + 2]
    names = value(words, "--methods", "").split(",")
    return [["train", "--method", name, *rest, "--print-config"] for name in names]


def shrunk(words: list[str]) -> list[str]:
    """Make a training, an analysis or a benchmark cheap, and compare one method: later flags win over earlier ones."""
    if words[:1] == ["explain"]:
        return [*words, "--images", "48"]
    if words[:1] == ["bench"]:
        words = [*words, "--methods", "dcl", "--batch-size", "4", "--blocks", "1,2", "--baselines", "bp-fused"]
        return words if "--model" in words else [*words, "--model.width", "0.0625"]
    if words[:1] not in (["train"], ["compare"]) or {"--help", "--print-config"} & set(words):
        return words
    less = ["--epochs", "1", "--limit-batches", "2", "--threads", "1"]
    if value(words, "--model", "vgg8b") in models.CATALOGUE and "--config" not in words:
        less += ["--model.width", "0.0625"]
    if "--validation" in words:
        less += ["--validation", "0.25"]  # the small data sets have four images of a class
    if words[0] == "compare":
        less += ["--methods", value(words, "--methods", "").split(",")[-1], "--seeds", "1"]
    # Generated sets are made of all of MNIST, of which there are a few images here; test_data_backgrounds makes them.
    return [*("mnist" if word.endswith("ed-digits") else word for word in words), *less]


def images(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """Write small data sets under every name that the pages use; no command may reach for the network."""
    directory = tmp_path_factory.mktemp("stocked")
    (directory / "data").mkdir()
    for name, shape in SHAPES.items():
        for split, count in (("train", 40), ("test", 20)):
            rows = []
            for index, pixels in enumerate(images(count, shape)):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "png")
                rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}.png"}, "label": index % 10})
            pq.write_table(pa.Table.from_pylist(rows), directory / "data" / f"{name}-{split}.parquet")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (directory / "photos" / split / name).mkdir(parents=True)
            for index, pixels in enumerate(images(4, (40, 30, 3))):
                Image.fromarray(pixels).save(directory / "photos" / split / name / f"{index}.png")
    return directory


@pytest.fixture
def workplace(stocked, tmp_path, monkeypatch):
    for entry in stocked.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(compare, "measure", partial(compare.measure, seconds=0))  # the fewest pairs, but real ones
    monkeypatch.setattr("localprop.bench.rows.STEP_SECONDS", 0.0)
    monkeypatch.setattr("localprop.train.exits.ROUND_SECONDS", 0.0)
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith(str(tmp_path)):
            del sys.modules[name]


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    saved = re.match(r"# (\w+\.py)\n", block.text)
    if saved:
        Path(saved[1]).write_text(block.text)
        importlib.invalidate_caches()
    padded = "\n" * (block.line - 1) + block.text  # a traceback then shows the page's own lines
    exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)


def install_entry_points(block: Block) -> None:
    """Do what installing a package with this table in its pyproject.toml does."""
    found = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n((?:[\w-]+ = ".+"\n)+)', block.text)
    assert found, f"a toml block that is no table of entry points:\n{block.text}"
    installed = Path("documented-0.dist-info")
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: documented\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[{found[1]}]\n{found[2]}".replace('"', ""))
    importlib.invalidate_caches()


def run_command(words: list[str], page: Path, line: int, capsys: pytest.CaptureFixture[str]) -> None:
    if words[:1] == ["train"] and page.parent.name == "methods":
        words = [*words, "--print-config"]  # that every method trains is shown elsewhere
    for word in words:
        if word.endswith((".png", ".jpg")) and not Path(word).exists():
            Image.fromarray(images(1, (40, 30, 3))[0]).save(word)
    comparison = words[:1] == ["compare"]
    for each in each_method(words) if comparison else []:
        check_command(each, page, line, capsys)
    if not comparison or page in COMPARES:
        check_command(shrunk(words), page, line, capsys)


def check_command(words: list[str], page: Path, line: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(words)
    assert code == 0, f"{name_of(page)}, block at line {line}: localprop {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("page", "left_out"),
    [
        *(
            pytest.param(page, (), id=name_of(page), marks=[pytest.mark.slow] if page in {*PROCESSES, README} else [])
            for page in RUN
        ),
        pytest.param(README, MEASURING_COMMANDS, id="README.md without what takes long"),
    ],
)
def test_the_blocks_of_a_page_run(page, left_out, workplace, capsys):
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            run_python(block, page, namespace)
        elif block.language == "toml":
            install_entry_points(block)
        elif block.language in ("console", "bash"):
            for words in commands(block):
                if words[0] not in left_out:
                    run_command(words, page, block.line, capsys)


def test_blocks_and_commands_are_found():
    shell = "$ localprop train --x 1 \\\n    --y 2  # why\noutput\n$ make demo\n"
    text = f"a\n```console\n{shell}```\n```text\nlocalprop no\n```\n"
    found = blocks(text)
    assert [(block.language, block.line) for block in found] == [("console", 3), ("text", 9)]
    assert list(commands(found[0])) == [["train", "--x", "1", "--y", "2"]]
    assert list(commands(Block("bash", "localprop methods\nls\n", 1))) == [["methods"]]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_reachable_from_the_index():
    reached, waiting = set(), [DOCS / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        waiting += {(page.parent / link).resolve() for link in links if ":" not in link} - reached
    assert set(DOCS.rglob("*.md")) <= reached


def test_every_method_has_a_page_and_every_page_a_method():
    pages = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"README"}
    assert pages == set(methods.CATALOGUE)


@pytest.mark.parametrize("name", methods.CATALOGUE)
def test_a_method_page_lists_the_method_s_settings(name):
    settings = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8").partition("## Settings")[2]
    listed = re.findall(r"^\| `(\w+)` \|", settings.partition("\n## ")[0], re.MULTILINE)
    assert listed == list(methods.CATALOGUE[name].settings())


def test_doctests():
    attempted = 0
    for info in pkgutil.walk_packages(localprop.__path__, "localprop."):
        if info.name.endswith(".__main__"):
            continue  # importing it runs it
        try:
            module = importlib.import_module(info.name)
        except ImportError as error:
            if error.name in OPTIONAL:
                continue
            raise
        result = doctest.testmod(module)
        assert result.failed == 0, f"{info.name}: {result.failed} doctests fail"
        attempted += result.attempted
    assert attempted > 0
