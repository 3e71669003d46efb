"""`localprop evaluate` and `predict`: the errors of a trained network, and its answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from localprop.commands.arguments import Command, add_directory, refuse, show, show_facts


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.train.evaluate import evaluate_run

    found = evaluate_run(arguments.directory, allow_imports=arguments.allow_imports)
    return show_facts(found, arguments.json)


def _predict(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.infer.predict import predict
    from localprop.report.pictures import check_picture
    from localprop.report.predictions import prediction_cells, predictions_figure

    check_picture(arguments.picture)
    found = predict(arguments.directory, arguments.images, allow_imports=arguments.allow_imports)
    if arguments.picture is not None:
        predictions_figure(found, arguments.picture)
    shown = list(found.rows()) if arguments.json else prediction_cells(found)
    return show(shown, tuple(shown[0]), arguments.json, header=True)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument(
        "images", metavar="IMAGE", type=Path, nargs="+", help="image files of any size and mode, or directories of them"
    )
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also draw what every block says, as PNG or SVG")


EVALUATE = Command(_evaluate, add_directory, "measure the errors of a trained network again")
PREDICT = Command(_predict, _add_predict, "classify images with a trained network")
