"""Pictures that stand in the page itself, made small enough for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image, UnidentifiedImageError

BUDGET_BYTES = 600_000
WIDTHS = (1400, 1000, 700, 480)
MOST_PIXELS = 50_000_000
QUALITY = 82


@dataclass(frozen=True)
class Encoded:
    """A picture as the page holds it.

    Attributes:
        uri: A data URI.
        width: Pixels.
        height: Pixels.
        shrunk: Whether it has fewer pixels than its file.
    """

    uri: str
    width: int
    height: int
    shrunk: bool


def encode(paths: Sequence[Path], fix: str) -> dict[Path, Encoded]:
    """Encode pictures as WebP, all as wide as a budget for the whole page allows.

    Args:
        paths: PNG files, the most telling first.
        fix: What to do about a broken one, for the message.

    Returns:
        What fits; if not all do at the least width, the last ones are left out.

    Raises:
        ValueError: A file is missing, is no PNG, or has too many pixels.
    """
    encoded: dict[Path, Encoded] = {}
    for most in WIDTHS:
        encoded = {path: _encode(path, most, fix) for path in paths}
        if sum(len(one.uri) for one in encoded.values()) <= BUDGET_BYTES:
            return encoded
    sizes = accumulate(len(one.uri) for one in encoded.values())
    return {path: one for (path, one), size in zip(encoded.items(), sizes, strict=True) if size <= BUDGET_BYTES}


def _encode(path: Path, most: int, fix: str) -> Encoded:
    try:
        with Image.open(path, formats=["PNG"]) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"{path} has {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}; {fix}")
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, though explain.json beside it tells of it; {fix}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a PNG picture ({error}); {fix}") from None
    shrunk = picture.width > most
    if shrunk:
        size = most, max(1, round(picture.height * most / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Encoded(uri, picture.width, picture.height, shrunk)
