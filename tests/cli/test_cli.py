"""The contracts of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import localprop
from localprop.cli import main

SMALL = [
    "--model.width",
    "0.0625",
    "--limit-batches",
    "2",
    "--epochs",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def run(argv, capsys):
    code = main(argv)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


COMMAND = [sys.executable, "-m", "localprop"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(localprop.__file__).parents[1])}


def process(*argv, command=COMMAND, **options):
    return subprocess.run(
        [*command, *map(str, argv)], capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options
    )


def test_several_mistakes_are_reported_together_on_standard_error(capsys):
    argv = ["train", "--method", "dcll", "--model", "vgg8b", "--model.widht", "0.25", "--epochs", "-1"]
    code, out, err = run([*argv, "--epocs=3", "stray", "--log", "tensorbord"], capsys)
    assert (code, out) == (2, "")
    for words in ("'dcl'", "--model.width?", "--epochs -1", "--epochs?", "stray", "'tensorboard'"):
        assert words in err
    assert len(err.splitlines()) == 6


def test_several_settings_out_of_their_ranges_are_reported_together(tmp_path, capsys):
    """Ranges stand in the builders, which stop at the first; the message names all, by flag."""
    argv = ["train", "--out", tmp_path / "run", "--method", "dcl", "--method.temperature", "0"]
    argv += ["--method.embeddings-per-class", "-3", "--model.width", "0", "--model.dropout", "2", "--at", "nowhere"]
    argv += ["--schedule", "cosine", "--schedule.warmup", "3"]
    argv += ["--optimizer", "SGD", "--optimizer.lr", "0.1", "--optimizer.momentum", "-1"]
    code, out, err = run(list(map(str, argv)), capsys)
    assert (code, out) == (2, "")
    for words in (
        "--method.temperature 0.0: must be positive",
        "--method.embeddings-per-class -3: must be at least 1",
        "--model.width 0.0: ",
        "--model.dropout 2.0: must be in [0, 1)",
        "--at: ",
        "--schedule.warmup 3.0: must be a fraction",
        "--optimizer SGD: Invalid momentum value",
    ):
        assert words in err
    assert len(err.splitlines()) == 7
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method.clusters", "1", "--method.samples", "64"], "--method.clusters 1: must be at least 2"),
        (["--method.clusters", "20000"], "--method.samples 16384: must be at least the number of clusters, 20000"),
        ([], "--epochs: a run of 2 steps is too short"),
    ],
)
def test_one_mistake_is_reported_once(flags, told, tmp_path, capsys):
    """What a setting that was put back to its default makes of others is not reported."""
    argv = ["train", "--method", "clusters", "--model", "cnn", *SMALL, *flags, "--out", str(tmp_path / "run")]
    code, _, err = run(argv, capsys)
    assert code == 2
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_refused_setting_without_a_default_is_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "demanding.py").write_text(
        "from localprop import methods\n"
        "def _build(net, specs, *, size: int):\n"
        "    raise ValueError(f'size: must be positive, got {size}')\n"
        "METHOD = methods.Method('m', 'M', 'greedy', 2020, '@misc{m}', _build, 'none')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["train", "--method", "demanding:METHOD", "--method.size", "0", *SMALL, "--out", str(tmp_path / "run")]
    code, _, err = run(argv, capsys)
    assert (code, err) == (2, "localprop: error: --method.size 0: must be positive, got 0\n")


def test_a_run_too_short_for_a_methods_phases_is_found_before_the_first_is_trained(tmp_path, capsys):
    argv = ["compare", "--methods", "bp,clusters", "--model", "cnn", *SMALL, "--out", str(tmp_path / "comparison")]
    code, _, err = run(argv, capsys)
    assert code == 2
    assert "--epochs: a run of 2 steps is too short" in err
    assert not (tmp_path / "comparison").exists()


def test_a_mistake_in_the_last_method_is_found_before_the_first_is_trained(tmp_path, capsys):
    argv = ["compare", "--methods", "bp,predsim", "--method.beta", "7", *SMALL, "--out", str(tmp_path / "comparison")]
    code, out, err = run(argv, capsys)
    assert (code, out) == (2, "")
    assert "--method.beta 7.0: " in err
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["methods", "--jsno"], "did you mean '--json'?"),
        (["cite", "dcll"], "did you mean 'dcl'?"),
        (["train", "--method", "DCL"], "did you mean 'dcl'?"),
        (["train", "--model", "VGG8B"], "did you mean 'vgg8b'?"),
        (["train", "--data", "Fashion-Mini"], "did you mean 'fashion-mini'?"),
        (["train", "--optimizer", "adamw"], "did you mean 'AdamW'?"),
        (["train", "--model.width"], "--model.width: needs a value"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["train", "--resume", "yes"], "--resume yes: must be auto"),
        (["train", "--resum", "auto"], "did you mean --resume?"),
        (["train", "--method", "dcll", "--help"], "--method dcll: no method"),
        (["train", "--model", "timm:no_such_network"], "--model timm:no_such_network"),
        (["compare"], "--methods: name the methods"),
        (["compare", "--methods", "bp,dcll", "--seeds", "0"], "--seeds 0"),
        (["compare", "--methods", "bp,dcll"], "did you mean 'dcl'?"),
        (
            ["compare", "--methods", "bp", "--method.temperature", "2"],
            "--method.temperature 2: no such setting",
        ),
        (["compare", "--methods", "bp", "--seed", "2"], "did you mean --seeds?"),
        (["predict", "somewhere"], "IMAGE"),
        (["train", "--method", "..relative:X"], "--method ..relative:X: an import path has the form"),
        (["train", "--model", ":x"], "--model :x: an import path has the form"),
        (["train", "--optimizer", "os:"], "--optimizer os:: an import path has the form"),
        (["train", "--model", "os:system"], "--model os:system: must be callable as (image_shape, num_classes, *"),
        (["train", "--schedule", "operator:add"], "--schedule operator:add: must be callable as (*, settings)"),
        (["train", "--optimizer", "SparseAdam"], "choose Adam"),
        (["train", "--device", "meta"], "--device meta: holds no numbers"),
        (["train", "--optimizer.lr", "-1"], "Invalid learning rate: -1.0; change --optimizer.SETTING"),
    ],
)
def test_a_mistake_exits_2_with_one_message(argv, message, capsys):
    code, out, err = run(argv, capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_the_printed_settings_alone_go_to_standard_output_and_replay(tmp_path, capsys):
    flags = [
        "--model.width=.25",
        "--batch_size",
        "64",
        "--optimizer.weight-decay",
        "-1e-3",
        "--data.crop_padding",
        "2",
    ]
    code, printed, err = run(["train", "--print_config", *flags], capsys)
    assert code == 0
    settings = yaml.safe_load(printed)
    assert settings["model"] == {"name": "vgg8b", "width": 0.25, "dropout": 0.1, "nonlinearity": "relu"}
    assert settings["optimizer"]["weight_decay"] == -0.001
    assert settings["data"] == {"name": "fashion-mini", "crop_padding": 2}
    assert "recipe: " in err
    assert "this run instead: batch_size 64, optimizer.weight_decay -0.001" in err
    file = tmp_path / "run.yaml"
    file.write_text(printed)
    assert run(["train", "--config", str(file), "--print-config"], capsys)[1] == printed


def test_methods_as_json(capsys):
    code, out, err = run(["methods", "--json"], capsys)
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert {"bp", "dcl", "dcl-s", "dcl-ld", "pred"} <= {row["name"] for row in rows}
    columns = {
        "name",
        "family",
        "title",
        "year",
        "auxiliary_parameters",
        "needs_labels",
        "messages",
        "passes",
    }
    assert all(set(row) == columns | {"updates_in_forward", "global_error"} for row in rows)


@pytest.mark.parametrize(("command", "name"), [("methods", "dcl"), ("models", "vgg8b"), ("data", "fashion-mini")])
def test_catalogues_as_text_and_json(command, name, capsys):
    _, out, _ = run([command], capsys)
    assert name in [line.split()[0] for line in out.splitlines()]
    _, out, _ = run([command, "--json"], capsys)
    assert name in [row["name"] for row in json.loads(out)]


def test_cite_prints_bibtex(capsys):
    code, out, _ = run(["cite", "dcl"], capsys)
    assert code == 0
    assert out.startswith("@")


def test_version_and_help(capsys):
    assert run(["--version"], capsys)[1].startswith("localprop ")
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    for command in ("methods", "models", "data", "cite", "train", "compare", "evaluate", "predict", "exits"):
        assert f"    {command} " in out
        code, text, _ = run([command, "--help"], capsys)
        assert code == 0
        assert text.startswith(f"usage: localprop {command}")


def test_help_lists_flags_defaults_and_the_settings_of_named_components(capsys):
    _, out, _ = run(["train", "--method", "dcl-cosine", "--optimizer", "SGD", "--help"], capsys)
    text = " ".join(out.split())
    assert "--epochs VALUE passes over the training set" in text
    assert "(default: 5)" in text
    assert "--method.temperature VALUE Positive divisor of the logits. [float; default: 0.07]" in text
    assert "--optimizer.momentum" in text
    assert "--model.width" not in text
    assert "--method.update" not in text  # fixed: it is what makes the method


def test_a_run_from_start_to_finish(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(["train", "--method", "dcl", "--seed", "3", *SMALL], capsys)
    assert (code, out) == (0, "")
    assert "recipe: " in err
    directory = "runs/dcl-vgg8b-fashion-mini-seed3"
    assert f"run: {directory}" in err
    final = (tmp_path / directory / "final.json").read_bytes()
    assert json.loads(final)["method"] == "dcl"

    again = ["train", "--config", f"{directory}/config.yaml"]
    code, _, err = run(again, capsys)
    assert code == 2
    assert "--resume auto" in err

    code, _, _ = run([*again, "--resume", "auto"], capsys)
    assert code == 0
    assert (tmp_path / directory / "final.json").read_bytes() == final


@pytest.mark.parametrize("command", [["train", "--method", "bp"], ["compare", "--methods", "bp"]])
@pytest.mark.parametrize(
    ("out", "reason"),
    [("file", "this is a file"), ("file/run", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_an_out_that_cannot_be_used_exits_2(command, out, reason, tmp_path, capsys):
    (tmp_path / "file").touch()
    directory = tmp_path / out
    code, printed, err = run([*command, "--resume", "auto", *SMALL, "--out", str(directory)], capsys)
    assert (code, printed) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("localprop: error: ")]
    assert line.startswith(f"localprop: error: --out {directory}: ")
    assert reason in line
    assert "directory" in line.rpartition(";")[2]
    assert "Errno" not in line


CLAIM_WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from localprop.train.directory import claim_directory
os.chdir(sys.argv[1])
os.chmod(".", 0o555)
if os.getuid() == 0:
    os.setuid(65534)
try:
    claim_directory(Path("."))
except ValueError as error:
    print(error)
"""


def test_an_out_that_only_others_may_write_to_is_refused(tmp_path):
    done = process(tmp_path, command=[sys.executable, "-c", CLAIM_WITHOUT_RIGHTS])
    assert done.stdout == (
        "--out .: cannot be used as a run directory (Permission denied); choose a directory that you can write to\n"
    ), done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--optimizer", "SGD", "--optimizer.fused", "true", "--optimizer.foreach", "true"], "--optimizer SGD: "),
        (["--validation", "0.99999"], "--validation 0.99999: fraction must leave an image of every class"),
    ],
)
def test_what_is_refused_beyond_a_builders_own_checks_names_its_flag(flags, told, tmp_path, capsys):
    code, _, err = run(["train", *SMALL, *flags, "--out", str(tmp_path / "run")], capsys)
    assert code == 2
    assert told in err


@pytest.mark.parametrize("flag", ["--image-size", "--model.hidden"])
def test_too_little_memory_exits_3_with_the_ways_out(flag, tmp_path, capsys):
    big = ["--model", "fc", "--model.chunks", "1", flag, "1000000000"]
    code, _, err = run(["train", *SMALL, *big, "--out", str(tmp_path / "run")], capsys)
    assert code == 3
    assert "not enough memory" in err
    assert "--batch-size" in err


def test_failed_training_exits_3(tmp_path, capsys):
    diverging = ["--optimizer", "SGD", "--optimizer.lr", "1e30", "--limit-batches", "4"]
    code, _, err = run(["train", "--method", "bp", *SMALL, *diverging, "--out", str(tmp_path / "run")], capsys)
    assert code == 3
    assert "step" in err


def test_clusters_of_a_diverged_block_exit_3(tmp_path, capsys):
    argv = ["train", "--method", "clusters", "--model", "cnn", "--model.width", "0.0625", "--epochs", "1"]
    argv += ["--limit-batches", "10", "--batch-size", "16", "--method.samples", "256", "--threads", "1"]
    code, _, err = run([*argv, "--optimizer.lr", "1e25", "--out", str(tmp_path / "run")], capsys)
    assert code == 3
    assert "Try a smaller --optimizer.lr" in err


@pytest.mark.slow
def test_an_interrupt_exits_130_with_a_checkpoint(tmp_path):
    directory = tmp_path / "run"
    argv = [
        "train",
        *SMALL[:2],
        "--epochs",
        "100",
        "--threads",
        "1",
        "--log-every",
        "1",
        "--out",
        str(directory),
    ]
    with subprocess.Popen([sys.executable, "-m", "localprop", *argv], stderr=subprocess.PIPE, text=True) as training:
        metrics = directory / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "--resume auto" in err
    assert "Traceback" not in err
    assert list((directory / "checkpoint").iterdir())


METHOD = """
from localprop import Method
from localprop.methods.local_error import prediction
METHOD = Method("mine", "Mine", "local error", 2024, "@misc{mine}", prediction, "a head a block")
"""


@pytest.mark.slow
def test_a_third_partys_method_by_import_path(tmp_path, capsys):
    (tmp_path / "my_methods.py").write_text(METHOD)
    script = tmp_path / "bin" / "localprop"  # unlike `python -m`, a script does not see the working directory
    script.parent.mkdir()
    script.write_text("import sys\nfrom localprop.cli import main\nsys.exit(main())\n")
    command = [sys.executable, script]
    argv = ["train", "--method", "my_methods:METHOD", *SMALL, "--out", "run"]
    done = process(*argv, command=command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    replay = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--print-config"]
    code, _, err = run(replay, capsys)
    assert code == 2
    assert "--allow-imports" in err
    allowed = process(*replay, "--allow-imports", command=command, cwd=tmp_path)
    assert allowed.stdout == (tmp_path / "run" / "config.yaml").read_text()


def test_a_config_file_executes_no_code(tmp_path):
    (tmp_path / "evil_module.py").write_text("open('executed', 'w').close()\n")
    (tmp_path / "run.yaml").write_text("method: evil_module:METHOD\n")
    refused = process("train", "--config", "run.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--allow-imports" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "executed").exists()


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "localprop", "methods", "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_numbers_too_small_to_be_normal_are_taken_for_zero_by_every_thread_of_training(tmp_path: Path):
    code = """
import sys, torch
import localprop.train.fit as fit
from localprop.cli import main
train = fit._train
def count(*arguments):
    print("left:", int((torch.full((2**22,), 1e-39) * 1.0).count_nonzero()))
    train(*arguments)
fit._train = count
assert main(sys.argv[1:]) == 0
print("as before:", sys.float_info.min / 2 > 0)
"""
    words = "train --method dcl --model mlp --model.width 0.25 --epochs 1 --limit-batches 1 --threads 2 --out"
    argv = [sys.executable, "-c", code, *words.split(), str(tmp_path / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-2:] == ["left: 0", "as before: True"]
