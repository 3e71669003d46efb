"""The model card of an exported network: front matter that the Hub reads, and the run's own numbers."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from localprop.data import CATALOGUE
from localprop.methods import Method
from localprop.report.runs import Final

TASK = "image-classification"


def model_card(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    method: Method,
    final: Final | None,
    block_names: Sequence[str],
) -> str:
    """Return the text of the card. What comes from the run is data: nothing of it becomes markup.

    Args:
        facts: Those of the exported network.
        settings: Those of the run that are published.
        method: What it was trained by.
        final: Numbers of the finished run, or None.
        block_names: Names of its blocks.

    Raises:
        ValueError: The numbers are not those of a network with these blocks.
    """
    name = f"{facts['method']} on {facts['data']}"
    parts = [
        f"# {_text(name)}",
        f"A network of the kind {_text(facts['model'])}, trained by {_text(method.name)} ({_text(method.title)}) with "
        "localprop: local learning in PyTorch.",
        _usage(facts),
        _results(facts, final, block_names),
        _training(settings, final),
    ]
    if method.citation.strip():
        parts.append(f"## Citation of the method\n\n{_fenced(method.citation.strip(), 'bibtex')}")
    tags = ["localprop", *([] if method.global_error else ["local-learning"]), facts["method"], facts["model"]]
    front_matter = _front_matter(name, facts, tags, None if final is None else error_of(facts, final, block_names))
    return f"---\n{front_matter}---\n\n" + "\n\n".join(parts) + "\n"


def error_of(facts: Mapping[str, Any], final: Final, block_names: Sequence[str]) -> float | None:
    """Return the test error of an export's exit in percent: of one block, or of the network's answer.

    Raises:
        ValueError: There is not one error a block.
    """
    if len(final.layer_errors) != len(block_names):
        raise ValueError(
            f"final.json: has {len(final.layer_errors)} layer_errors, the network {len(block_names)} blocks; "
            "delete the file to export without numbers"
        )
    if facts["exit"] in ("last", "all"):
        return final.test_error
    return final.layer_errors[block_names.index(facts["exit"])]


def train_command(settings: Mapping[str, Any]) -> str:
    """Return the command line that trains by these settings."""
    words = ["localprop", "train"]
    for key, value in settings.items():
        parts = value if isinstance(value, Mapping) else {"name": value}
        for name, entry in parts.items():
            flag = key if name == "name" else f"{key}.{name}"
            if entry is not None and entry != []:
                words += [f"--{flag.replace('_', '-')}", _word(entry)]
    return shlex.join([*words, "--out", "DIR"])


def _front_matter(name: str, facts: Mapping[str, Any], tags: Sequence[str], error: float | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = facts["data"]
    results = []
    if error is not None:
        results.append(
            EvalResult(
                task_type=TASK,
                dataset_type=_encodable(data),
                dataset_name=_encodable(data),
                dataset_split="test",
                metric_type="accuracy",
                metric_name="accuracy, one seed, last epoch",
                metric_value=round(1 - error / 100, 6),
            )
        )
    card = ModelCardData(
        library_name="localprop",
        pipeline_tag=TASK,
        tags=[_encodable(tag) for tag in tags],
        datasets=[data] if data in CATALOGUE else None,
        metrics=["accuracy"],
        model_name=_encodable(name),
        eval_results=results or None,
    )
    return f"{card.to_yaml().strip()}\n"


def _usage(facts: Mapping[str, Any]) -> str:
    channels, height, width = facts["image_shape"]
    code = "\n".join(
        [
            "import localprop",
            "import torch",
            "from huggingface_hub import snapshot_download",
            "",
            'network = localprop.load(snapshot_download("USER/NAME"))',
            f"images = torch.rand(8, {channels}, {height}, {width})  # pixels / 255",
            "probabilities = network(images).softmax(1)",
            "names = [network.class_names[index] for index in probabilities.argmax(1)]",
        ]
    )
    classes = ", ".join(_text(name) for name in facts["class_names"])
    return (
        f"## Use\n\n```console\n$ pip install 'localprop[hub]'\n```\n\n{_fenced(code, 'python')}\n\n"
        f"In: float32 images of shape (N, {channels}, {height}, {width}) in 0 to 1; the network normalises them "
        f"itself. Out: one logit a class. Exit: {_text(facts['exit'])}. Classes: {classes}."
    )


def _results(facts: Mapping[str, Any], final: Final | None, block_names: Sequence[str]) -> str:
    if final is None:
        return f"## Results\n\nNone: the run had not finished, this is its state after step {facts['step']}."
    rows = [("the network's answer", final.test_error)]
    rows += [
        (f"block {_text(name)}", error)
        for name, error in zip(block_names, final.layer_errors, strict=True)
        if error is not None
    ]
    number = "the test images" if final.test_images is None else f"{final.test_images} test images"
    return "\n".join(
        [
            "## Results",
            "",
            f"Percent of {number} classified wrongly after the last epoch; one run (seed {final.seed}), so without a "
            "spread. No test error chose anything.",
            "",
            "| | error % |",
            "|---|---|",
            *(f"| {name} | {error:g} |" for name, error in rows),
        ]
    )


def _training(settings: Mapping[str, Any], final: Final | None) -> str:
    lines = ["## Training", "", _fenced(train_command(settings), "text")]
    if final is not None:
        facts = {
            "epochs": f"{final.epochs:g}",
            "parameters of the network": final.parameters,
            "parameters trained beside it": final.extra_parameters,
            "training seconds": f"{final.train_seconds:.0f}",
            **final.hardware,
            **final.versions,
            "commit of localprop": final.commit,
        }
        lines += ["", "| | |", "|---|---|"]
        lines += [f"| {_text(key)} | {_text(value)} |" for key, value in facts.items() if value is not None]
    return "\n".join(lines)


def _word(value: Any) -> str:
    """Spell a setting as the command line reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_word, value))
    return str(value)


def _text(value: object) -> str:
    """Return a value as Markdown that shows it in one line and means nothing else."""
    line = " ".join(_encodable(str(value)).split()) or "(empty)"
    return re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", html.escape(line, quote=False))


def _fenced(text: str, language: str) -> str:
    """Return a block of code that ends where it should, whatever stands in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{_encodable(text)}\n{fence}"


def _encodable(text: str) -> str:
    """Return a text with what UTF-8 cannot hold spelled out; file names may have it."""
    return text.encode("utf-8", "backslashreplace").decode()
