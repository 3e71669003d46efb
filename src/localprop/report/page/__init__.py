"""One self-contained page about runs: no network, nothing executed that came from a file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import localprop
from localprop.report.page.chart import Chart
from localprop.report.page.gather import gather
from localprop.report.page.left_early import Slider
from localprop.report.page.pictures import encode
from localprop.report.page.sections import Section, section_of
from localprop.report.page.words import command
from localprop.train.directory import replace_text

MOST_BYTES = 6_000_000
SUFFIX = ".html"


def write_page(directories: Sequence[Path], path: Path) -> int:
    """Write one self-contained HTML page about runs.

    Args:
        directories: Run directories and directories of comparisons. Runs of one protocol stand in one table.
        path: The file to write, `.html`; what is there is replaced.

    Returns:
        Its size, bytes; at most 6 MB.

    Raises:
        ValueError: A directory holds no finished run, a file in it is not valid, the page would be too large, it cannot
            be written, or plotly or jinja2 is not installed.
    """
    check_page(path)
    scripts = _scripts()
    sections = [section_of(group) for group in gather(directories)]
    page = _render(sections, scripts, command("report", *directories, "--out", path))
    size = len(page.encode())
    if size > MOST_BYTES:
        raise ValueError(
            f"--out {path}: the page would have {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}; "
            "give fewer directories, or fewer runs that were analysed by explain"
        )
    try:
        replace_text(path, page)
    except OSError as error:
        raise ValueError(
            f"--out {path}: cannot be written ({error.strerror}); choose a place that you can write to"
        ) from error
    return size


def check_page(path: Path) -> None:
    """Refuse a file that no page can be written to, before anything is read.

    Raises:
        ValueError: Its suffix is another, it is a directory, or its directory is not there.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"--out {path}: must end in {SUFFIX}")
    if path.is_dir():
        raise ValueError(f"--out {path}: this is a directory; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no directory {path.parent}; make it first")


def _scripts() -> list[str]:
    """Return the page's scripts: Plotly's and its own."""
    try:
        import jinja2  # noqa: F401 # asked for here, so that both are named at once
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(
            f"report needs plotly and jinja2 ({(error.name or '').partition('.')[0]} is missing); install them with: "
            "pip install 'localprop[report]'"
        ) from error
    own = (files(__name__) / "template" / "page.js").read_text(encoding="utf-8")
    return [script.replace("</script", "<\\/script") for script in (get_plotlyjs(), own)]


def _render(sections: Sequence[Section], scripts: Sequence[str], made_by: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__name__, "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    drawn: list[dict[str, Any]] = []
    sliders: list[dict[str, Any]] = []

    def draw(chart: Chart) -> str:
        drawn.append(chart.spec())
        return f"chart-{len(drawn) - 1}"

    def slide(slider: Slider) -> str:
        sliders.append({"stops": [asdict(stop) for stop in slider.stops]})
        return f"slider-{len(sliders) - 1}"

    paths = [picture.path for section in sections for picture in section.pictures]
    # The scripts are the library's own; every other text of the page is escaped by the template.
    return environment.get_template("page.html").render(
        sections=sections,
        pictures=encode(paths, "analyse again with: localprop explain"),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        style=Markup((files(__name__) / "template" / "page.css").read_text(encoding="utf-8")),
        draw=draw,
        slide=slide,
        drawn=drawn,
        sliders=sliders,
        made_by=made_by,
        version=localprop.__version__,
    )


def _hash(script: str) -> str:
    """Return what the page's policy knows a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
