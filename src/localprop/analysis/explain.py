"""Every analysis that fits a trained run, as one JSON file and a picture each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from localprop.analysis.cka import cka_figure, cka_of_run
from localprop.analysis.collapse import collapse_figure, collapse_of_run
from localprop.analysis.confusion import confusion_figure, confusion_of_run
from localprop.analysis.embeddings import embeddings_figure, embeddings_of_run
from localprop.analysis.filters import filters_figure, filters_of_run
from localprop.analysis.gradients import gradients_figure, gradients_of_run
from localprop.analysis.memorisation import memorisation_figure, memorisation_of_run
from localprop.analysis.over_training import embeddings_over_training_figure, embeddings_over_training_of_run
from localprop.analysis.probes import probes_figure, probes_of_run
from localprop.analysis.retained import information_figure, information_of_run
from localprop.analysis.saliency import saliency_figure, saliency_of_run
from localprop.analysis.subject import Finding, Subject, load_subject, plain
from localprop.analysis.super_labels import super_labels_figure, super_labels_of_run
from localprop.errors import nearest
from localprop.train.directory import claim_directory, write_json

DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Analysis:
    """One analysis of a trained run.

    Attributes:
        title: What it answers.
        of_run: Does it; raises ValueError, with the reason, where it does not fit the run.
        draw: Draws what it found.
    """

    title: str
    of_run: Callable[[Subject], Finding]
    draw: Callable[[Finding], Figure]


ANALYSES: Mapping[str, Analysis] = {
    "collapse": Analysis("neural collapse of each block", collapse_of_run, collapse_figure),
    "cka": Analysis("how alike the blocks see the test images", cka_of_run, cka_figure),
    "probes": Analysis("errors of linear probes on each block, percent", probes_of_run, probes_figure),
    "memorisation": Analysis("errors on images seen and unseen, percent", memorisation_of_run, memorisation_figure),
    "information": Analysis("what blocks retain of class, nuisance and image", information_of_run, information_figure),
    "embeddings": Analysis("label embeddings, their size, spread and neighbours", embeddings_of_run, embeddings_figure),
    "embeddings-over-training": Analysis(
        "length and spread of label embeddings over training",
        embeddings_over_training_of_run,
        embeddings_over_training_figure,
    ),
    "confusion": Analysis("confusion of classes against likeness of embeddings", confusion_of_run, confusion_figure),
    "saliency": Analysis("where blocks see labels in test images", saliency_of_run, saliency_figure),
    "super-labels": Analysis("errors in super-classes, percent", super_labels_of_run, super_labels_figure),
    "gradients": Analysis("local gradients beside backprop's", gradients_of_run, gradients_figure),
    "filters": Analysis("filters of the first layer", filters_of_run, filters_figure),
}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the analyses of these names, all for none.

    Raises:
        ValueError: There is no analysis of a name.
    """
    for name in names:
        if name not in ANALYSES:
            raise ValueError(
                f"--only {name}: no such analysis{nearest(name, ANALYSES)}; there are {', '.join(ANALYSES)}"
            )
    return list(names) or list(ANALYSES)


def explain_run(
    directory: Path,
    *,
    only: Sequence[str] = (),
    out: Path | None = None,
    images: int = 5000,
    against: Path | None = None,
    allow_imports: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Analyse a trained run, and write explain.json and NAME.png of every analysis.

    Args:
        directory: A run directory.
        only: Names of analyses; all that fit the run by default.
        out: Where to write; default `directory`/explain.
        images: Most training images, and most test images, that are looked at.
        against: Another run on the same data, whose blocks `cka` compares these with.
        allow_imports: Whether import paths in the runs' config.yaml may be imported.
        say: Told what is being done, and what is skipped and why.

    Returns:
        The content of explain.json: what was analysed, rows and details by analysis, and the reasons of those skipped.

    Raises:
        ValueError: The run or its data cannot be read, or an analysis that was named does not fit the run.
        TrainingError: A file cannot be written.
    """
    names = chosen(only)
    subject = load_subject(directory, images=images, against=against, allow_imports=allow_imports)
    out = directory / "explain" if out is None else out
    claim_directory(out)
    analyses: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in names:
        say(f"{name}: {ANALYSES[name].title}")
        try:
            finding = ANALYSES[name].of_run(subject)
        except ValueError as error:
            if only:
                raise ValueError(f"--only {name}: {error}") from error
            skipped[name] = str(error)
            say(f"{name}: skipped, {error}")
            continue
        finding = Finding(plain(finding.rows), plain(finding.details), finding.tensors)
        ANALYSES[name].draw(finding).savefig(out / f"{name}.png", dpi=DOTS_PER_INCH, bbox_inches="tight")
        analyses[name] = {"title": ANALYSES[name].title, "rows": finding.rows, **finding.details}
    config = subject.run.config
    content = {
        "run": str(directory),
        "against": None if against is None else str(against),
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.name,
        "step": subject.run.step,
        "train_images": len(subject.train),
        "test_images": len(subject.test),
        "analyses": analyses,
        "skipped": skipped,
    }
    write_json(out / "explain.json", content)
    return content
