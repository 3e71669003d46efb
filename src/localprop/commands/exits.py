"""`localprop exits`: answers of the first sure block."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command, add_directory, refuse
from localprop.train.errors import TrainingError


def _exits(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.report.exits import exits_figure, print_exits
    from localprop.report.pictures import check_picture
    from localprop.train.directory import write_json
    from localprop.train.exits import exits_run

    check_picture(arguments.picture)
    found = exits_run(
        arguments.directory,
        measure=arguments.by,
        max_error_increase=arguments.max_error_increase,
        batch_size=arguments.batch_size,
        allow_imports=arguments.allow_imports,
    )
    if arguments.picture is not None:
        exits_figure(found, arguments.picture)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print_exits(found)
    try:
        write_json(arguments.directory / "exits.json", found)
    except TrainingError as error:  # what was measured is printed: only `report` goes without it
        streams.say(f"error: {error}")
        return 3
    return 0


def _add_exits(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument(
        "--by",
        metavar="MEASURE",
        default="confidence",
        help="what makes a block sure: confidence, margin or entropy (default: %(default)s)",
    )
    parser.add_argument(
        "--max-error-increase",
        metavar="POINTS",
        type=float,
        default=0.5,
        help="points of error that early exits may cost on the held-out images (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="images a batch that is timed (default: that of the run)"
    )
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also draw error over arithmetic, as PNG or SVG")


EXITS = Command(_exits, _add_exits, "measure what a trained network gains by answering at its first sure block")
