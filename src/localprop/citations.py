"""The papers behind the methods, from `references.bib`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


def paper(key: str) -> str:
    """Return the BibTeX entry of a key, such as "choi2024dictionary".

    Raises:
        KeyError: `references.bib` has no such entry.
    """
    return _entries()[key]


@cache
def _entries() -> dict[str, str]:
    text = files("localprop").joinpath("references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^(@\w+\{([^,\s]+),.*?^\})$", text, re.MULTILINE | re.DOTALL)
    return {key: entry for entry, key in found}
