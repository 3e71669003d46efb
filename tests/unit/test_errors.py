"""What error messages suggest."""

from __future__ import annotations

import pytest

from localprop.errors import nearest


@pytest.mark.parametrize(
    ("name", "allowed", "suggested"),
    [
        ("DCL", ["bp", "dcl", "dcl-s"], "dcl"),
        ("DLC-S", ["bp", "dcl", "dcl-s"], "dcl-s"),
        ("sgd", ["SGD", "Adagrad"], "SGD"),
        ("adam", ["Adam", "adam", "ADAM"], "adam"),
        ("Adm", ["adam", "Adam"], "Adam"),
        ("ADAm", ["Adam", "adam", "ADAM"], "ADAM"),
    ],
)
def test_nearest__minds_the_case_only_between_spellings_of_one_name(
    name: str, allowed: list[str], suggested: str
) -> None:
    assert nearest(name, allowed) == f" (did you mean {suggested!r}?)"
    assert nearest(name, reversed(allowed)) == f" (did you mean {suggested!r}?)"


@pytest.mark.parametrize("allowed", [[], ["bp"], ["QQQQ"]])
def test_nearest__suggests_nothing_far_off(allowed: list[str]) -> None:
    assert nearest("vgg8b", allowed) == ""
