"""Label embeddings over training: how long they are, and how many directions they take up."""

from __future__ import annotations

from itertools import groupby

from matplotlib.figure import Figure

from localprop.analysis.figures import series_figure
from localprop.analysis.subject import Finding, Subject
from localprop.record import read


def embeddings_over_training_of_run(subject: Subject) -> Finding:
    """Return what the run recorded of its dictionaries at every evaluation, one row each.

    Raises:
        ValueError: It recorded nothing of the kind.
    """
    subject.dictionaries()
    rows = [row for row in read(subject.run.directory / "metrics.jsonl") if row.get("kind") == "dictionary"]
    if not rows:
        raise ValueError("the run recorded no dictionaries: it was trained by an earlier version")
    kept = ("name", "step", "epoch", "mean_norm", "effective_rank")
    return Finding([{key: row[key] for key in kept} for row in sorted(rows, key=lambda row: str(row["name"]))])


def embeddings_over_training_figure(finding: Finding) -> Figure:
    """Draw length and effective rank over epochs, a line a dictionary."""
    named = {name: list(rows) for name, rows in groupby(finding.rows, lambda row: str(row["name"]))}
    panels = {
        label: {name: [(row["epoch"], row[key]) for row in rows] for name, rows in named.items()}
        for key, label in (("mean_norm", "mean length"), ("effective_rank", "effective rank"))
    }
    return series_figure("epoch", panels)
