"""Tables and figures, made from the files of runs alone."""

from localprop.report.figures import comparison_figure
from localprop.report.rows import MeanStd, Provenance, Row, comparison
from localprop.report.tables import markdown, terminal, to_json

__all__ = [
    "MeanStd",
    "Provenance",
    "Row",
    "comparison",
    "comparison_figure",
    "markdown",
    "terminal",
    "to_json",
]
