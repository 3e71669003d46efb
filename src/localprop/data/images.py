"""One encoded image to pixels, whatever its mode, size and orientation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from localprop.data.store import DataError

_MODES = {1: "L", 3: "RGB"}
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_ROUNDING = 1e-3  # of floating-point pixels: interpolation and sums of weights leave 1.0000001


def read_image(path: str | Path, *, channels: int, size: int | tuple[int, int] | None) -> Tensor:
    """Read an image file as a data set demands it.

    Any mode is converted (16 bits are scaled to 8, floating point by its white, 1 or 255), the orientation of the
    camera applied, transparency laid on white, and the whole picture stretched to `size`, bilinear and antialiased.

    Args:
        path: A file that Pillow can read.
        channels: 1 for gray, 3 for RGB.
        size: Height and width, one number for both, in pixels; None keeps the image's own.

    Shape:
        (C, H, W), uint8.

    Raises:
        DataError: The file is missing, no image, or damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        kind = "is a directory" if file.is_dir() else "does not exist"
        raise DataError(f"image {path} {kind}; give the path of an image file")
    return torch.from_numpy(decode(file, str(path), channels=channels, size=size))


def decode(source: bytes | Path, place: str, *, channels: int, size: int | tuple[int, int] | None) -> NDArray[np.uint8]:
    """Decode one image to uint8 of shape (C, H, W).

    Args:
        source: The encoded bytes, or the file that holds them.
        place: What an error calls the image.
        channels: 1 for gray, 3 for RGB.
        size: Height and width, one number for both, in pixels; None keeps the image's own.

    Raises:
        DataError: The image cannot be decoded.
    """
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels}; convert the model's input")
    try:
        with _open(source) as image:
            ImageOps.exif_transpose(image, in_place=True)
            converted = _converted(image, _MODES[channels])
            if size is not None:
                height, width = (size, size) if isinstance(size, int) else size
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.array(converted)
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged bytes
        raise _damaged(place, error) from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def is_gray(source: bytes | Path, place: str) -> bool:
    """Tell from an image's header whether it is stored without colour.

    Raises:
        DataError: The header cannot be read.
    """
    try:
        with _open(source) as image:
            return image.mode in _GRAY_MODES
    except Exception as error:  # as in `decode`
        raise _damaged(place, error) from error


def _open(source: bytes | Path) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _damaged(place: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{place} is no image that can be read ({reason}); replace it or leave it out")


def _levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale floating-point pixels to bytes: white is 1, or 255 if any pixel lies above 1 by more than rounding.

    Raises:
        ValueError: A pixel that neither scale has.
    """
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= -_ROUNDING and highest <= 255 + _ROUNDING):  # also NaN
        raise ValueError(
            f"its floating-point pixels lie in {lowest:g} .. {highest:g}; save them in 0 .. 1 or in 0 .. 255"
        )
    white = 1 if highest <= 1 + _ROUNDING else 255
    levels: NDArray[np.uint8] = (pixels * (255 / white)).round().clip(0, 255).astype(np.uint8)
    return levels


def _converted(image: Image.Image, mode: str) -> Image.Image:
    transparent = "transparency" in image.info or image.mode[-1] in "Aa"
    if image.mode == mode and not transparent:
        return image
    if image.mode == "F":
        image = Image.fromarray(_levels(np.asarray(image)))
    elif image.mode.startswith("I"):  # 16 bits; Pillow's own conversion cuts them off at 255
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    elif transparent:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    # Only RGB converts to every mode and from every mode; gray survives the way there and back exactly.
    return image if image.mode == mode else image.convert("RGB").convert(mode)
