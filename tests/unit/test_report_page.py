"""What the report page is made of: which runs, which words, which numbers. How it looks is tested in a browser."""

from __future__ import annotations

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from localprop.cli import main
from localprop.report.page import pictures, write_page
from localprop.report.page.chart import shown
from localprop.report.page.compared import cost_charts
from localprop.report.page.gather import gather
from localprop.report.page.known import parts_of
from localprop.report.page.left_early import slider
from localprop.report.page.over_training import MOST_POINTS, training_charts
from localprop.report.page.stored import read_exits, read_explained
from localprop.report.page.words import headline
from tests.browser.runs import (
    HOSTILE,
    final,
    write_comparison,
    write_exits,
    write_explained,
    write_hostile,
    write_run,
)


class Text(HTMLParser):
    """The words of a page, and the JSON that its scripts read."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.data: dict[str, Any] = {}
        self._inside, self._id = "", ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside, self._id = tag, dict(attrs).get("id") or ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._id:
            self.data[self._id] = json.loads(data)
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(out: Path, *directories: Path) -> Text:
    assert write_page(directories, out) == out.stat().st_size
    return Text(out)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return write_comparison(tmp_path / "three")


def test_page__says_what_came_out_and_how_it_was_made(comparison: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", comparison)
    for words in (
        "conv (width 0.25) on fashion-mini, 2 epochs",
        "Backprop is wrong on 22.50 ± 0.71 % of the test images, the best of the 2 other methods, dcl, on "
        "23.50 ± 0.71 %: 1.00 points more.",
        "The difference from backprop is within the spread over seeds: not a finding.",
        "dcl was picked by its test error among 2, which flatters it.",
        f"localprop exits {comparison / 'dcl' / 'seed-0'}",
        f"localprop explain {comparison / 'dcl' / 'seed-0'}",
        f"localprop train --config {comparison / 'pred' / 'seed-1' / 'config.yaml'} --out REPEATED",
        f"localprop report {comparison} --out {tmp_path / 'page.html'}",
        "torch 2.9.1, python 3.12.1",
        "0123456789ab",
    ):
        assert words in page.text
    assert len(page.data["drawn"]) == 1 + 3 + 3  # at the end, over training, of cost


def test_page__is_the_same_bytes_again(comparison: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_page([comparison], out)
    first = out.read_bytes()
    write_page([comparison], out)
    assert out.read_bytes() == first


def test_page__of_one_run_says_that_nothing_stands_beside_it(tmp_path: Path) -> None:
    record = final("dcl")
    del record["settings"]["validation"]
    run = tmp_path / "run"
    write_run(run, record)
    rows = (run / "metrics.jsonl").read_text().replace('"validation"', '"test"')
    (run / "metrics.jsonl").write_text(rows)
    text = page_of(tmp_path / "page.html", run).text
    assert "One seed: nothing is known of its spread. Nothing stands beside it" in text
    assert "Not measured. localprop compare measures time and memory" in text
    assert "these runs held no images out to choose a threshold on" in text
    assert "Errors on test images" in text


def test_gather__puts_runs_of_one_protocol_into_one_table(comparison: Path, tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", final("dgl"))
    other = write_run(tmp_path / "other", final("dgl", data="mnist"))
    groups = gather([other, alone, comparison])
    assert [[entry.label for entry in group.entries] for group in groups] == [["dgl"], ["bp", "dgl", "dcl", "pred"]]
    assert [row.num_seeds for row in groups[1].rows] == [2, 1, 2, 2]
    costs = cost_charts(groups[1])
    assert [chart.title.split()[0] for chart in costs] == ["Time", "Memory", "Live"]
    assert all("Not measured: dgl, pred." in chart.note for chart in costs)


def test_gather__adds_seeds_of_other_directories_and_names_what_differs(comparison: Path, tmp_path: Path) -> None:
    third = write_run(
        tmp_path / "third", final("dcl", 2, settings={**final("dcl")["settings"], "log": ["tensorboard"]})
    )
    hot = write_run(tmp_path / "hot", final("dcl", 0))
    record = json.loads((hot / "final.json").read_text())
    record["settings"]["method"]["temperature"] = 3.0
    (hot / "final.json").write_text(json.dumps(record))
    [group] = gather([comparison, third, hot])
    assert {row.method: row.seeds for row in group.rows} == {
        "bp": (0, 1),
        "dcl (temperature 1.0)": (0, 1, 2),
        "dcl (temperature 3.0)": (0,),
        "pred": (0, 1),
    }


def test_gather__takes_an_unset_setting_for_one_that_is_not_there(tmp_path: Path) -> None:
    settings = final("dcl")["settings"]
    settings["method"]["projection"] = settings["precision"] = None
    runs = [
        write_run(tmp_path / "old", final("dcl", 0)),
        write_run(tmp_path / "new", final("dcl", 1, settings=settings)),
    ]
    [group] = gather(runs)
    assert {row.method: row.seeds for row in group.rows} == {"dcl": (0, 1)}


@pytest.mark.parametrize(
    ("dcl", "words"),
    [
        ((30.0,), "7.50 points more. Beside backprop, at least one has one seed: no spread is known"),
        (
            (21.0, 25.0),
            "0.50 points more. The difference from backprop is within the spread over seeds: not a finding.",
        ),
        ((30.0, 31.0), "8.00 points more. The difference from backprop is larger than the spread over seeds"),
        ((10.0, 11.0), "12.00 points less. The difference from backprop is larger than the spread over seeds"),
    ],
)
def test_headline__is_no_more_than_the_runs_say(tmp_path: Path, dcl: tuple[float, ...], words: str) -> None:
    for method, errors in {"bp": (22.0, 23.0), "dcl": dcl}.items():
        for seed, error in enumerate(errors):
            write_run(tmp_path / method / f"seed-{seed}", final(method, seed, test_error=error))
    [group] = gather([tmp_path])
    told = " ".join(headline(group).sentences)
    assert words in told
    assert "picked" not in told  # there was nothing to pick from


def test_headline__without_backprop(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / method, final(method)) for method in ("dcl", "mono-forward")]
    [group] = gather(runs)
    told = headline(group).sentences[0]
    assert told == "Of 2 rows dcl has the lowest test error, 23.00 %. Backprop is not among them."


def test_headline__of_backprop_alone(tmp_path: Path) -> None:
    runs = []
    for rate in (0.1, 0.01):
        settings = {**final("bp")["settings"], "optimizer": {"name": "AdamW", "lr": rate}}
        runs.append(write_run(tmp_path / str(rate), final("bp", settings=settings, test_error=100 * rate)))
    told = headline(gather(runs)[0]).sentences[0]
    assert told == "Of 2 rows bp (optimizer.lr 0.01) has the lowest test error, 1.00 %."
    assert headline(gather(runs[:1])[0]).sentences[0].startswith("bp is wrong on 10.00 % of the test images. One seed")


def test_training_charts__are_thinned_and_say_so(tmp_path: Path) -> None:
    [group] = gather([write_run(tmp_path / "long", final("dcl"), evaluations=78)])
    [chart] = training_charts(group).values()
    assert [len(trace["x"]) for trace in chart.traces] == [MOST_POINTS] * 4
    assert chart.traces[0]["x"][-1] == 2
    assert "Shown are 60 of 78 evaluations" in chart.note
    assert chart.numbers is not None
    assert chart.numbers.columns == ["epoch", "conv1", "conv2", "classifier", "network"]


def test_slider__starts_at_what_was_chosen_and_ends_at_the_whole_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", final("dcl"))
    write_exits(run)
    [group] = gather([run])
    exits = read_exits(run, group.entries[0].finals[0])
    assert exits is not None
    found = slider(exits, group.entries[0].block_names)
    assert [stop.tiles["threshold"][0] for stop in found.stops] == ["0.0000", "0.5000", "0.7500", "0.9900", "none"]
    assert found.stops[found.start].tiles["threshold"] == ("0.7500", "chosen on held-out images")
    assert [sum(stop.shares) for stop in found.stops] == [100] * 5
    assert found.stops[-1].words.startswith("whole network: test error 20.00 percent")


def test_slider__may_start_at_the_whole_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", final("dcl"))
    write_exits(run)
    exits = read_exits(run, gather([run])[0].entries[0].finals[0])
    assert exits is not None
    found = slider(exits.model_copy(update={"chosen": exits.whole}), ("conv1", "conv2", "classifier"))
    assert found.start == len(found.stops) - 1
    assert found.stops[-1].tiles["threshold"] == ("none", "chosen on held-out images")


def test_page__of_hostile_names_is_text(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", write_hostile(tmp_path))
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text
    assert page.tags.count("script") == 4
    assert page.tags.count("img") == 2
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert raw.count("</script>") == 4
    drawn = raw[raw.index('id="drawn"') : raw.index('id="sliders"')]
    assert "\u2028" not in drawn
    assert "<img" not in drawn


def test_shown__leaves_no_markup_and_no_formula() -> None:
    assert shown("<b>a</b> & $x$\n\u202e") == "&lt;b&gt;a&lt;/b&gt; &amp; &#36;x&#36;"
    assert len(shown("x" * 200)) == 28


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_page__names_the_extra_that_it_needs(
    comparison: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["report", str(comparison), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert f"{missing} is missing" in error
    assert "pip install 'localprop[report]'" in error


def test_pictures__share_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        Image.effect_noise((690, 230), 80).save(path)
    whole = sum(len(one.uri) for one in pictures.encode(paths, "repeat it").values())
    monkeypatch.setattr(pictures, "BUDGET_BYTES", whole - 1)
    encoded = pictures.encode(paths, "repeat it").values()
    assert sum(len(one.uri) for one in encoded) < whole
    assert [(one.width, one.height, one.shrunk) for one in encoded] == [(480, 160, True)] * 2
    monkeypatch.setattr(pictures, "BUDGET_BYTES", whole)
    assert not any(one.shrunk for one in pictures.encode(paths, "repeat it").values())


def test_pictures__that_never_fit_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", final("dcl"))
    write_explained(run)
    Image.effect_noise((480, 90), 80).save(run / "explain" / "filters.png")
    monkeypatch.setattr(pictures, "BUDGET_BYTES", 10_000)
    page = page_of(tmp_path / "page.html", run)
    assert page.tags.count("img") == 1
    assert f"The page has no room for it: see {run / 'explain' / 'filters.png'}" in page.text


def spoil(directory: Path, file: str, change: Any) -> None:
    """Change a file: to other bytes, or a JSON object in some of its entries; None takes it away."""
    path = directory / "dcl" / "seed-0" / file
    if change is None:
        path.unlink()
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))


RAGGED = {"title": "t", "rows": [{"name": "a"}, {"name": "b"}], "matrix": [[1.0, 0.5], [0.5]]}
FEW = {"title": "t", "rows": [{}], "classes": ["a", "b"], "principal_components": [[0.0, 1.0]]}
MISTAKES: list[tuple[str, Any, str]] = [
    ("final.json", None, "final.json is missing: the run has not finished; resume it"),
    ("final.json", b'{"method": "dcl"', "final.json is not valid"),
    ("final.json", {"test_error": None}, "test_error"),
    ("final.json", {"test_error": float("nan")}, "test_error: Input should be a finite number; repeat this run"),
    ("final.json", {"method": "pred"}, "is of method 'pred' and seed 0"),
    ("final.json", {"block_names": ["one"]}, "1 block_names, but 3 layer_errors"),
    ("metrics.jsonl", None, "metrics.jsonl is missing; repeat this run"),
    ("metrics.jsonl", b"[" * 100_000, "metrics.jsonl, line 1, is not valid"),
    ("metrics.jsonl", b"{}\n", "has no evaluation on the 'test' split; repeat this run"),
    ("exits.json", b"\xff\xfe", "exits.json is not valid"),
    (
        "exits.json",
        {"step": 3},
        "exits.json is of step 3, but the run beside it of step 156; measure again: localprop exits",
    ),
    ("exits.json", {"whole": {}}, "whole.threshold: Field required"),
    ("explain/explain.json", b"", "explain.json is not valid"),
    ("explain/explain.json", {"data": "mnist"}, "is of data 'mnist', but the run beside it of data 'fashion-mini'"),
    ("explain/explain.json", {"analyses": {"cka": {"title": "t", "rows": []}}}, "analyse again: localprop explain"),
    ("explain/explain.json", {"analyses": {"cka": RAGGED}}, "matrix must have 2 rows of 2 numbers"),
    ("explain/explain.json", {"analyses": {"embeddings": FEW}}, "principal_components must have 2 points, as classes"),
    ("explain/saliency.png", None, "saliency.png is missing, though explain.json beside it tells of it"),
    ("explain/saliency.png", b"GIF89a", "saliency.png cannot be read as a PNG picture"),
    ("explain/filters.png", b"\x89PNG\r\n\x1a\n", "filters.png cannot be read as a PNG picture"),
]


@pytest.mark.parametrize(("file", "change", "message"), MISTAKES)
def test_page__of_broken_files_names_them(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, change: Any, message: str
) -> None:
    write_exits(comparison / "dcl" / "seed-0")
    write_explained(comparison / "dcl" / "seed-0")
    spoil(comparison, file, change)
    refused(tmp_path, capsys, [comparison], message)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], directories: list[Path], message: str) -> None:
    out = tmp_path / "page.html"
    assert main(["report", *map(str, directories), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""
    assert not out.exists()


def test_page__refuses_what_is_no_run(comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path, capsys, [tmp_path / "nowhere"], "nowhere: there is no such directory")
    refused(tmp_path, capsys, [comparison / "dcl" / "cost.json"], "cost.json: this is a file; name the directory")
    refused(tmp_path, capsys, [comparison, tmp_path / "empty"], "empty: neither a run of localprop")
    (tmp_path / "empty" / "config.yaml").write_text("method: {name: dcl}\n")
    refused(tmp_path, capsys, [tmp_path / "empty"], "the run has not finished; resume it")
    again = tmp_path / "again"
    shutil.copytree(comparison / "dcl" / "seed-0", again)
    refused(tmp_path, capsys, [comparison, again], "are both dcl with seed 0 and the same settings; give one of them")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "page.txt"], "--out page.txt: must end in .html"),
        (["--out", "nowhere/page.html"], "--out nowhere/page.html: there is no directory nowhere"),
        (["--out", "directory.html"], "--out directory.html: this is a directory"),
        (["--out", f"{'x' * 250}.html"], "cannot be written"),
        ([], "the following arguments are required: --out"),
        (["--out", "page.html", "--title", "x"], "--title: localprop report does not take this"),
    ],
)
def test_page__mistakes_are_one_line(
    comparison: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory.html").mkdir()
    assert main(["report", str(comparison), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_explained__lays_out_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", final("dcl"))
    write_explained(run)
    explained = read_explained(run, gather([run])[0].entries[0].finals[0])
    assert explained is not None
    titles = {part.title: [one.title for one in part.shown] for part in parts_of(explained, run / "explain")}
    assert titles["Saliency"] == ["Gallery"]
    assert titles["Neural collapse"] == [  # nc3 and nc4 have no number
        "NC1, spread within / between classes",
        "NC2, how unequal class means are",
    ]
    assert titles["Information"] == ["I(h; class), nats", "I(h; nuisance), nats"]
    assert titles["title of unheard-of"] == []
    text = page_of(tmp_path / "page.html", run).text
    assert "a row of an analysis that the page does not know" in text
    assert "CKA of blocks" in text
    assert "super-labels fashion-mini has no super-classes; cifar100 has" in text
    assert f"gradients not made; localprop explain {run}" in text


def test_explained__of_a_hundred_classes_names_what_is_too_much(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", final("dcl"))
    write_explained(run, [f"class {number}" for number in range(100)])
    explained = read_explained(run, gather([run])[0].entries[0].finals[0])
    assert explained is not None
    page = page_of(tmp_path / "page.html", run)
    assert "class 12" in page.text
    assert "The nearest of each class is among the numbers of the map." in page.text
    assert "The 1000 pairs most mixed up; 3950 others are not drawn." in page.text
    assert (tmp_path / "page.html").stat().st_size < 6_000_000
