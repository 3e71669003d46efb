"""`localprop report`: one self-contained page about runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command, refuse


def _report(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.report.page import write_page

    size = write_page(arguments.directories, arguments.out)
    streams.say(f"page: {arguments.out} ({size / 1e6:.1f} MB)")
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directories", metavar="DIR", type=Path, nargs="+", help="directory of a run or of a comparison"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the page to write, FILE.html")


REPORT = Command(_report, _add_report, "write one self-contained page about runs")
