"""Files of pictures: which may be written, and how."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")


def check_picture(path: Path | None) -> None:
    """Refuse a file that no picture can be written to, before anything is measured.

    Raises:
        ValueError: Its suffix is another, or its directory is not there.
    """
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--picture {path}: must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--picture {path}: there is no directory {path.parent}; make it first")


def save_picture(figure: Figure, path: Path, *, dpi: int = 150) -> None:
    """Write a figure; the same figure gives the same bytes."""
    figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)
