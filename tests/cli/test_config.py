"""How the settings of a run come about."""

import sys
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
import yaml

from localprop.methods import CATALOGUE
from localprop.train.components import Component, find
from localprop.train.config import ConfigError, RunConfig, config_from, resolve
from localprop.train.settings import coerce


def problems_of(flags, file=None, **options):
    with pytest.raises(ConfigError) as caught:
        resolve(flags, file, **options)
    return list(caught.value.problems)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_take_the_published_recipe_of_network_and_data():
    config = config_from({"model": "fc", "data": "mnist"})
    assert (config.batch_size, config.epochs) == (512, 5)
    assert config.optimizer.name == "AdamW"
    assert config.optimizer.settings["lr"] == 0.0005
    assert config.schedule == Component("multistep", {"milestones": (50 / 150, 100 / 150, 125 / 150), "gamma": 0.5})


def test_flags_go_before_file_before_recipe_before_defaults(yaml_file):
    file = yaml_file("model: {name: vgg8b, width: 0.5, dropout: 0.3}\nepochs: 7\nbatch-size: 32\nkeep: 4\n")
    config = config_from({"model.width": "0.25", "epochs": "9"}, file)
    assert config.model == Component("vgg8b", {"width": 0.25, "dropout": 0.3, "nonlinearity": "relu"})
    assert (config.epochs, config.batch_size, config.keep) == (9, 32, 4)
    assert config.optimizer.settings["lr"] == 0.0005  # the recipe
    assert config.log_every == 10  # the default


def test_recipe_settings_apply_to_the_recipes_optimizer_and_schedule_alone():
    config = config_from({"optimizer": "SGD", "optimizer.momentum": "0.9", "schedule": "cosine"})
    assert config.optimizer.settings["lr"] == 1e-3  # SGD's own default, not AdamW's 5e-4
    assert config.optimizer.settings["weight_decay"] == 0
    assert config.schedule == Component("cosine", {"warmup": 0.0, "final": 0.0})


def test_the_notes_print_the_recipe_its_source_and_what_the_user_changed():
    recipe, changed = resolve({"model": "fc", "data": "mnist", "batch_size": "64"}).notes
    assert "batch_size 512" in recipe
    assert "Choi et al., ICLR 2024" in recipe
    assert "150 epochs" in recipe
    assert changed == "this run instead: batch_size 64"
    assert len(resolve({"model": "fc", "data": "mnist", "batch_size": "512"}).notes) == 1


def test_settings_of_another_model_in_the_file_do_not_apply_and_are_named(yaml_file):
    file = yaml_file("model: {name: vgg8b, width: 0.5}\n")
    resolved = resolve({"model": "fc"}, file)
    assert resolved.config.model.settings["width"] == 1.0
    assert any("model.width 0.5" in note and "vgg8b" in note for note in resolved.notes)


@pytest.mark.parametrize("method", CATALOGUE)
def test_the_yaml_of_a_run_replays_it(method, yaml_file):
    flags = {
        "method": method,
        "model": "conv",
        "at": "conv1",
        "data.mean": "0.5",
        "schedule": "cosine",
        "clip-norm": "1",
    }
    config = config_from(flags)
    again = config_from({}, yaml_file(config.to_yaml()))
    assert again.to_dict() == config.to_dict()
    assert again.to_yaml() == config.to_yaml()


def test_yaml_takes_short_and_long_components_and_both_spellings(yaml_file):
    file = yaml_file("method: dcl-s\ndata: {name: cifar10, crop-padding: 2}\nclip_norm: 1e-1\nat: [a, b]\n")
    config = config_from({}, file)
    assert config.method.name == "dcl-s"
    assert config.data.settings == {"crop_padding": 2}
    assert config.clip_norm == 0.1
    assert config.at == ("a", "b")


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (float, "1e-3", 1e-3),
        (float, "1", 1.0),
        (int, "12", 12),
        (int, "010", 10),
        (int, "0x10", 16),
        (int, "-1_000", -1000),
        (bool, "yes", True),
        (str, "7", "7"),
        (str | None, "null", None),
        (float | None, "none", None),
        (tuple[str, ...], "conv1", ("conv1",)),
        (tuple[str, ...], "3,5", ("3", "5")),
        (Sequence[float], "0.5,0.75", [0.5, 0.75]),
        (Sequence[float] | None, "[1e-1, 2]", [0.1, 2.0]),
        (tuple[float, float], "0.9,0.99", (0.9, 0.99)),
        (float | torch.Tensor, "1e-2", 1e-2),
        (float | Literal["learned"], "learned", "learned"),
    ],
)
def test_text_becomes_what_the_annotation_asks_for(annotation, text, value):
    if text == "none":
        with pytest.raises(ValueError, match="number"):
            coerce(annotation, text)
        return
    result = coerce(annotation, text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "message"),
    [
        (int, "1.5", "integer"),
        (int, "yes", "not yes or no"),
        (int, "1:30", "integer"),
        (int, "[" * 5000, "integer"),
        (float, "nan", "finite|number"),
        (float, ".inf", "finite"),
        (tuple[Literal["tensorboard", "wandb"], ...], "tensorbord", "did you mean 'tensorboard'"),
        (Literal["fp32", "bf16"], "bf61", "did you mean 'bf16'"),
        (Sequence[float], "0.5,x", "number"),
        (float, "[1,", "number"),
    ],
)
def test_text_that_does_not_fit_is_refused(annotation, text, message):
    with pytest.raises(ValueError, match=message):
        coerce(annotation, text)


def test_all_mistakes_are_reported_together_with_the_nearest_match(yaml_file):
    file = yaml_file("epocs: 3\nprecision: bf61\nmodel: {name: vgg8b, dropuot: 0.5}\n")
    found = problems_of(
        {
            "method": "dcl-cosin",
            "model.widht": "0.25",
            "epochs": "-1",
            "optimizer": "sgd",
            "schedule.warmup": "0.1",
            "data": "cifr10",
            "validation": "1",
            "objective.temperature": "2",
        },
        file,
    )
    expected = {
        "--method dcl-cosin": "did you mean 'dcl-cosine'?",
        "--model.widht 0.25": "did you mean --model.width?",
        "--epochs -1": "greater than or equal to 1",
        "--optimizer sgd": "did you mean 'SGD'?",
        "--data cifr10": "did you mean 'cifar10'?",
        "--validation 1": "less than 1",
        "--objective.temperature 2": "--method.temperature",
        f"{file}: epocs 3": "did you mean epochs?",
        f"{file}: precision bf61": "did you mean 'bf16'?",
        f"{file}: model.dropuot 0.5": "did you mean model.dropout?",
    }
    assert len(found) == len(expected)
    for start, hint in expected.items():
        (line,) = [line for line in found if line.startswith(start)]
        assert hint in line


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("lr", "--optimizer.lr"),
        ("width", "--model.width"),
        ("method.dropout", "--model.dropout"),
        ("model.batch_size", "--batch-size"),
        ("data.image-size", "--image-size"),
        ("optimizer.weight-decya", "--optimizer.weight-decay"),
        ("modle", "--model"),
    ],
)
def test_an_unknown_setting_names_where_it_belongs(flag, hint):
    (problem,) = problems_of({flag: "1"})
    assert f"did you mean {hint}?" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\n  keep: 1\n", "run.yaml, line 2: not valid YAML"),
        ("- epochs\n", "must hold settings"),
        ("epochs: 3\nkeep: 1\nepochs: 5\n", "line 3: not valid YAML: epochs is set twice"),
        ("model: [vgg8b]\n", "must be a name"),
        ("epochs: {a: 1}\n", "epochs {'a': 1}: must be a valid integer"),
        ("model: !!python/object/apply:os.system [exit]\n", "line 1: not valid YAML"),
        ("epochs: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: &a [*a]\n", "holds more than 10000 values"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
            "holds more than 10000 values",
        ),
        ("batch-size: 3\nbatch_size: 4\n", "batch_size 4: is set twice"),
        ("model.width: 0.5\nmodel: {name: fc, width: 0.25}\n", "model.width 0.25: is set twice"),
        ("threads: 100000000000\n", "threads 100000000000: must be less than or equal to 1024"),
        ("batch_size: 100000000000000000000\n", "must be less than or equal to"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(text, message, yaml_file):
    (problem,) = problems_of({}, yaml_file(text))
    assert message in problem


def test_a_missing_file_and_a_wrong_flag_are_reported_together(tmp_path):
    found = problems_of({"epochs": "0"}, tmp_path / "nothing.yaml")
    assert len(found) == 2
    assert "nothing.yaml: cannot be read: No such file" in found[0]


@pytest.mark.parametrize("kind", ["method", "model", "optimizer", "schedule"])
def test_an_import_path_in_a_file_is_imported_only_when_allowed(kind, yaml_file, tmp_path, monkeypatch):
    module = f"hostile_{kind}"
    (tmp_path / f"{module}.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = yaml_file(f"{kind}: {module}:THING\n")

    (problem,) = problems_of({}, file)
    assert f"{kind} {module}:THING" in problem
    assert "--allow-imports" in problem
    assert module not in sys.modules
    assert not (tmp_path / f"{module}.ran").exists()

    problems_of({}, file, allow_imports=True)  # it has no THING
    assert (tmp_path / f"{module}.ran").exists()


def test_a_schedule_and_an_optimizer_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "parts_of_mine.py").write_text(
        "import torch\n"
        "class Slow(torch.optim.SGD):\n"
        "    def __init__(self, params, *, lr: float, haste: float = 0.5):\n"
        "        super().__init__(params, lr=lr * haste)\n"
        "def steep(*, power: float = 2.0):\n"
        "    return lambda progress: (1 - progress) ** power\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = {"optimizer": "parts_of_mine:Slow", "schedule": "parts_of_mine:steep", "schedule.power": "3"}
    assert problems_of(flags) == ["--optimizer.lr: parts_of_mine:Slow needs a value for it"]
    config = config_from({**flags, "optimizer.lr": "1e-2"})
    assert config.optimizer.settings == {"lr": 0.01, "haste": 0.5}
    assert config.schedule.settings == {"power": 3.0}


@pytest.mark.parametrize(("path", "message"), [("no_such_module:X", "no_such_module"), ("torch.optim:Adm", "Adam")])
def test_a_wrong_import_path_says_what_is_missing(path, message):
    (problem,) = problems_of({"optimizer": path})
    assert message in problem


def test_every_optimizer_of_torch_can_be_configured_or_is_refused():
    names = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and name != "Optimizer"]
    assert {"SGD", "AdamW"} < set(names)
    refused = {"LBFGS": "several times a step", "SparseAdam": "sparse gradients"}
    for name in names:
        if name in refused:
            (problem,) = problems_of({"optimizer": name})
            assert refused[name] in problem
            continue
        settings = config_from({"optimizer": name}).optimizer.settings
        yaml.safe_load(config_from({"optimizer": name}).to_yaml())
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        assert find("optimizer", name).builder([parameter], **settings).defaults["lr"] == settings["lr"]


def test_a_run_config_made_in_python_is_checked():
    parts = {kind: getattr(config_from({}), kind) for kind in ("method", "model", "data", "optimizer", "schedule")}
    assert RunConfig(**parts, at=["a"]).at == ("a",)
    with pytest.raises(ConfigError, match=r"epochs 0: .*\n?seed -1"):
        RunConfig(**parts, epochs=0, seed=-1)
