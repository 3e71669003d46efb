"""`localprop explain`: what the blocks of a trained network know."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command, add_directory, listed, refuse
from localprop.train.errors import TrainingError


def _explain(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.analysis.explain import explain_run

    out = arguments.out or arguments.directory / "explain"
    try:
        found = explain_run(
            arguments.directory,
            only=listed(arguments.only),
            out=out,
            images=arguments.images,
            against=arguments.against,
            allow_imports=arguments.allow_imports,
            say=streams.say,
        )
    except TrainingError as error:  # a file could not be written
        streams.say(f"error: {error}")
        return 3
    streams.say(f"rows and pictures: {out}")
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, analysis in found["analyses"].items():
        print(f"{name}: {analysis['title']}")
        streams.print_numbers(analysis["rows"])
        print()
    return 0


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("--only", metavar="NAME,NAME", default="", help="analyses to make (default: all that fit)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="directory to write (default: DIR/explain)")
    parser.add_argument(
        "--images",
        metavar="N",
        type=int,
        default=5000,
        help="most training and most test images to look at (default: %(default)s)",
    )
    parser.add_argument(
        "--against", metavar="RUN", type=Path, help="another run on the same data, whose blocks cka compares these with"
    )


EXPLAIN = Command(_explain, _add_explain, "analyse what the blocks of a trained network know")
