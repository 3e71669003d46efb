"""The report page in a real browser: Debian's or any other Chromium on the path, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from localprop.cli import main
from tests.browser.runs import HOSTILE, write_comparison, write_exits, write_explained, write_hostile

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (extra `dev`)")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium on the PATH")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
DRAWN = "document.querySelectorAll('.chart[data-drawn]').length"
CONTRASTS = """
() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((numbers(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const cells = [...document.querySelectorAll(".heatmap-label text")];
  const named = ["high", "low", "card"].map((name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  });
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("script, style, noscript")) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const behind = cells.includes(element) ? named : [background(element)];
    for (const one of behind) found.push([contrast(color, one), element.tagName, element.textContent.slice(0, 40)]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open a page; at the end demand that it printed nothing, asked nothing of the network, and showed no dialog."""
    told: list[str] = []
    contexts = []

    def open_page(file: Path, viewport: dict[str, int] = DESKTOP, scheme: str = "light", **settings: Any) -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or told.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not told


def report(out: Path, *directories: Path) -> Path:
    assert main(["report", *map(str, directories), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    comparison = write_comparison(directory / "three")
    for method in ("dcl", "pred"):
        write_exits(comparison / method / "seed-0")
    write_explained(comparison / "dcl" / "seed-1")
    return report(directory / "page.html", comparison)


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    return report(directory / "page.html", write_hostile(directory))


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition frame by frame: Playwright's own way evaluates a string, which the page's policy forbids."""
    page.evaluate(
        f"new Promise((done) => {{ const look = () => ({condition} ? done() : requestAnimationFrame(look)); look(); }})"
    )


def draw_all(page: Any) -> int:
    """Make the window as high as the page, wait until every chart in an open panel is drawn, and count them."""
    page.set_viewport_size({**page.viewport_size, "height": page.evaluate("document.documentElement.scrollHeight")})
    count = page.evaluate("[...document.querySelectorAll('.chart')].filter((chart) => chart.checkVisibility()).length")
    wait_until(page, f"{DRAWN} >= {count}")
    return int(count)


def column(page: Any, number: int) -> list[str]:
    return [row.strip() for row in page.locator(f".sortable tbody tr > :nth-child({number})").all_inner_texts()]


@pytest.mark.slow
def test_page__draws_every_chart_as_plotly_understands_it(page_file: Path, opened: Open) -> None:
    page = opened(page_file)
    assert draw_all(page) >= 12
    problems = page.evaluate(
        """() => [...document.querySelectorAll(".chart[data-drawn]")].flatMap(
             (chart) => Plotly.validate(...JSON.parse(JSON.stringify([chart.data, chart.layout]))) ?? [])
             .filter((problem) => problem.code !== "unused").map((problem) => problem.msg)"""
    )
    assert problems == []
    for chart in page.locator(".chart").all():
        assert chart.get_attribute("role") == "img"
        assert len(chart.get_attribute("aria-label") or "") > 20
    for picture in page.locator("img").all():
        assert len(picture.get_attribute("alt") or "") > 20
        assert picture.evaluate("(image) => image.naturalWidth") == 900
    assert page_file.stat().st_size < 6_000_000


def test_page__sorts_by_click_and_by_keyboard(page_file: Path, opened: Open) -> None:
    page = opened(page_file)
    assert column(page, 1) == ["bp", "dcl", "pred"]
    error = page.get_by_role("button", name="error %", exact=True)
    error.click()
    error.click()
    assert column(page, 1) == ["pred", "dcl", "bp"]
    assert page.locator("th[aria-sort]").evaluate_all("(all) => all.map((th) => th.ariaSort)") == ["descending"]
    page.get_by_role("button", name="memory", exact=True).focus()
    for key, order in (("Enter", ["dcl", "bp", "pred"]), ("Space", ["bp", "dcl", "pred"])):  # pred's is not known
        page.keyboard.press(key)
        assert column(page, 1) == order
    page.get_by_role("button", name="method", exact=True).click()
    assert column(page, 1) == ["bp", "dcl", "pred"]
    assert page.locator("th[aria-sort]").inner_text().strip().startswith("method")


def test_page__slides_through_the_thresholds_by_arrow_keys(page_file: Path, opened: Open) -> None:
    page = opened(page_file)
    slider = page.get_by_role("slider", name="Threshold").first
    slider.scroll_into_view_if_needed()
    panel = page.locator("[data-slider]").first
    wait_until(page, "document.querySelector('[data-slider]').querySelectorAll('.chart .main-svg').length >= 4")

    def told() -> dict[str, str]:
        tiles = panel.locator("[data-tile]").all()
        return {tile.get_attribute("data-tile"): tile.locator("dd").first.inner_text() for tile in tiles}

    def drawn() -> tuple[list[float], list[float]]:
        one, other = panel.locator(".chart").all()
        mark = one.evaluate("(chart) => [chart.data.at(-1).x[0], chart.data.at(-1).y[0]]")
        return mark, other.evaluate("(chart) => chart.data[0].y")

    assert told() == {"threshold": "0.7500", "test error": "20.50\u00a0%", "arithmetic": "0.50x", "throughput": "2.00x"}
    assert drawn() == ([0.5, 20.5], [50, 25, 25])
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert told()["test error"] == "25.00\u00a0%"
    assert "25.00 percent" in (slider.get_attribute("aria-valuetext") or "")
    assert drawn() == ([0.25, 25], [75, 25, 0])
    page.keyboard.press("End")
    assert told()["threshold"] == "none"
    assert drawn() == ([1, 20], [0, 0, 100])


@pytest.mark.slow
def test_page__chooses_a_method_and_a_run(page_file: Path, opened: Open) -> None:
    page = opened(page_file)
    heading = page.get_by_role("heading", name="Layers of")
    assert heading.all_inner_texts() == ["Layers of dcl over training"]  # the best beside backprop
    page.get_by_label("Method over training").select_option("pred")
    assert heading.all_inner_texts() == ["Layers of pred over training"]
    page.get_by_label("Run").first.select_option("pred, seed 0")
    assert page.get_by_role("slider").count() == 1
    draw_all(page)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__can_be_read_in_both_schemes(page_file: Path, opened: Open, scheme: str) -> None:
    page = opened(page_file, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    draw_all(page)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 300
    assert [one for one in found if one[0] < 4.5] == []


@pytest.mark.slow
def test_page__changes_scheme_with_its_charts(page_file: Path, opened: Open) -> None:
    page = opened(page_file)
    draw_all(page)

    def colors() -> list[str]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, document.querySelector('.chart').layout.font.color]"
        )

    light = colors()
    page.get_by_role("button", name="Dark scheme").click()
    dark = colors()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    page.get_by_role("button", name="Light scheme").click()
    assert colors() == light
    page.emulate_media(color_scheme="dark")
    assert colors() == light  # what was chosen by hand stays


@pytest.mark.slow
@pytest.mark.parametrize("name", ["page_file", "hostile_file"])
def test_page__fits_a_phone(name: str, opened: Open, request: pytest.FixtureRequest) -> None:
    page = opened(request.getfixturevalue(name), PHONE, "dark")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    beyond = "(all) => all.filter((one) => one.getBoundingClientRect().right > innerWidth).length"
    assert page.locator("figure, .tiles > div, p, h1, h2, h3, select, input").evaluate_all(beyond) == 0


def test_page__shows_hostile_names_as_text(hostile_file: Path, opened: Open) -> None:
    page = opened(hostile_file)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    draw_all(page)
    text = " ".join(page.locator("main").text_content().split())
    for name in HOSTILE:
        assert " ".join(name.split()) in text
    assert page.locator("img").count() == 2  # the pictures of the analyses
    assert page.locator("script").count() == 4
    assert page.locator("svg a, main a[href^=javascript], b").count() == 0
    ticks = page.locator(".chart svg text").evaluate_all("(all) => all.map((one) => one.textContent)")
    assert any("<img src=x onerror=alert(1)>" in tick for tick in ticks)
    assert any("🦉 emoji %{x} $\\alpha$" in tick for tick in ticks)


@pytest.mark.slow
def test_page__forbids_scripts_that_are_not_its_own(page_file: Path, tmp_path: Path, browser: Any) -> None:
    """Even if a name got through as markup, the browser would not run it, nor fetch anything."""
    injected = '<img src="http://127.0.0.1:9/x.png" onerror="document.title = 1"><script>document.title = 2</script>'
    text = page_file.read_text(encoding="utf-8").replace('<main id="main"', f'{injected}<main id="main"', 1)
    (tmp_path / "injected.html").write_text(text, encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "injected.html").as_uri())
    wait_until(page, f"{DRAWN} > 0")
    assert page.title() not in ("1", "2")
    assert sum("Content Security Policy" in message for message in refused) >= 2
    page.close()


@pytest.mark.slow
def test_page__holds_its_numbers_without_scripts(page_file: Path, opened: Open) -> None:
    page = opened(page_file, java_script_enabled=False)
    assert "Charts, sorting and the slider need JavaScript" in page.locator("main").inner_text()
    assert page.locator("figure table").count() > 5
    assert page.get_by_role("heading", name="Layers of").count() == 3


@pytest.mark.slow
def test_page__of_real_runs(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localprop.train.exits.ROUND_SECONDS", 0.0)
    tiny = ["--model", "conv", "--model.width", "0.125", "--epochs", "2", "--limit-batches", "3", "--threads", "1"]
    words = ["compare", "--methods", "bp,dcl", *tiny, "--validation", "0.1", "--seeds", "2"]
    assert main([*words, "--out", str(tmp_path / "runs")]) == 0
    for method in ("bp", "dcl"):
        assert main(["explain", str(tmp_path / "runs" / method / "seed-0"), "--images", "64"]) == 0
    assert main(["exits", str(tmp_path / "runs" / "dcl" / "seed-0")]) == 0
    page = opened(report(tmp_path / "page.html", tmp_path / "runs"))
    assert draw_all(page) > 15
    assert column(page, 1) == ["bp", "dcl"]
    assert page.get_by_role("slider").count() == 1
    for name in ("Saliency", "Label embeddings", "Confusion", "Probes", "Neural collapse", "Information", "Filters"):
        assert page.get_by_role("heading", name=name, exact=True).first.is_visible()


@pytest.mark.slow
def test_page__of_eight_methods_three_seeds_and_pictures_is_small_enough(tmp_path: Path, opened: Open) -> None:
    methods = ("bp", "dcl", "pred", "sim", "predsim", "dgl", "mono-forward", "fa")
    comparison = write_comparison(tmp_path / "eight", methods, seeds=3)
    for method in methods:
        run = comparison / method / "seed-0"
        write_exits(run)
        write_explained(run, [f"class {number}" for number in range(20)])
        gallery = Image.effect_noise((90, 90), 80).resize((1800, 1800), Image.Resampling.BICUBIC)
        gallery.save(run / "explain" / "saliency.png")
    page = opened(report(tmp_path / "page.html", comparison))
    assert draw_all(page) > 10
    assert page.get_by_text("Shown smaller than in").first.is_visible()
    assert (tmp_path / "page.html").stat().st_size < 6_000_000
    assert len(column(page, 1)) == 8
