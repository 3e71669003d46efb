"""`localprop methods`, `models`, `data` and `cite`: what there is."""

from __future__ import annotations

import argparse
import inspect

from localprop.commands.arguments import Command, add_json, refuse, show
from localprop.train.components import find


def _methods(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.methods import catalogue

    return show([method.row() for method in catalogue().values()], ("name", "year", "title"), arguments.json)


def _models(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.models import CATALOGUE

    rows = []
    for name, factory in CATALOGUE.items():
        defaults = {key: parameter.default for key, parameter in find("model", name).settings.items()}
        rows.append({"name": name, "title": (inspect.getdoc(factory) or "").partition("\n")[0], "settings": defaults})
    return show(rows, ("name", "title"), arguments.json)


def _data(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.data import CATALOGUE

    columns = ("title", "image_shape", "num_train", "num_test", "class_names", "terms", "source")
    rows = [{"name": name, **{key: getattr(entry, key) for key in columns}} for name, entry in CATALOGUE.items()]
    return show(rows, ("name", "num_train", "num_test", "title"), arguments.json)


def _cite(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.methods import get

    print(get(arguments.method).citation.strip())
    return 0


def _add_cite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="name of a method")


METHODS = Command(_methods, add_json, "list the methods")
MODELS = Command(_models, add_json, "list the networks")
DATA = Command(_data, add_json, "list the data sets")
CITE = Command(_cite, _add_cite, "print the BibTeX entry of a method")
