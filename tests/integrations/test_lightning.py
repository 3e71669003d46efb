"""Lightning's own Trainer trains what the plain loop trains: same bits, loggers, checkpoints, several processes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import localprop
from localprop.infer.evaluate import evaluate
from localprop.train.errors import TrainingError
from localprop.train.executor import LocalExecutor
from tests.traits import suits, traits
from tests.unit import test_conformance as conformance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Lightning's import has to say of its own dependencies
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from localprop.integrations.lightning import LocalModule

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's advice on workers and loggers

SCRIPT = Path(__file__).parent / "two_processes.py"
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
BATCH, BATCHES = 16, 4


@pytest.fixture(autouse=True)
def as_it_was():
    """Use one thread, and put the environment back: Lightning writes ranks and ports into it."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


def build(method="dcl", dtype=torch.float32):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    net = localprop.split(nn.Sequential(first, nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 3)))
    return localprop.methods.build(method, net, num_classes=3, example=torch.zeros(2, 8)).to(dtype)


class Resumable(DataLoader):
    """Goes on within an epoch where its state says, as Lightning asks of loaders."""

    given = 0

    def __iter__(self):
        start = self.given % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.given = index + 1
                yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def loader(dtype=torch.float32, batches=BATCHES):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * batches, 8, generator=generator).to(dtype)
    y = torch.randint(0, 3, (BATCH * batches,), generator=generator)
    return Resumable(TensorDataset(x, y), batch_size=BATCH)


def trainer(directory, **settings):
    defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 2}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=directory, **{**defaults, **quiet, **settings})


def assert_same(rule, other):
    expected = other.state_dict()
    for name, value in rule.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("method", "precision", "settings"),
    [
        ("dcl", "32-true", {}),
        ("dcl", "64-true", {}),
        ("dcl", "bf16-mixed", {}),
        ("dcl", "32-true", {"accumulate": 3, "clip_norm": 0.1}),
        ("dtp", "32-true", {}),  # several updates of a group in a batch, and learning rates of its own
        ("bp", "32-true", {}),  # one optimiser
    ],
)
def test_fit__gives_the_bits_of_the_plain_loop(tmp_path, method, precision, settings):
    dtype = torch.float64 if precision == "64-true" else torch.float32
    plain = build(method, dtype)
    plain.autocast_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    executor = LocalExecutor(plain, SGD, **settings)
    for number, (x, y) in enumerate([*loader(dtype), *loader(dtype)]):
        executor.step(number, x, y)

    rule = build(method)
    lightning = trainer(tmp_path, precision=precision)
    lightning.fit(LocalModule(rule, SGD, **settings), loader())
    assert_same(rule, plain)
    assert lightning.global_step == 2 * BATCHES, "a batch is a step, however many optimisers there are"


@pytest.mark.slow
@pytest.mark.parametrize("method", localprop.methods.CATALOGUE)
def test_fit__gives_the_bits_of_the_plain_loop_for_every_method(tmp_path, method):
    network = next(name for name in ("fc-1x28", "conv-1x28", "patches-1x28") if suits(method, name))
    rule, plain = (conformance.build(method, conformance.NETWORKS[network]) for _ in range(2))
    x, y = conformance.batch_for(conformance.NETWORKS[network], 12)
    batches = DataLoader(TensorDataset(x, y), batch_size=6)
    if rule.phases()[0].blocks != range(len(rule.net)) or not traits(method).takes_steps:
        with pytest.raises(ValueError, match="trains in phases"):
            LocalModule(rule, SGD)
        return
    lightning = trainer(tmp_path, max_epochs=1)
    lightning.fit(LocalModule(rule, SGD), batches, batches)
    executor = LocalExecutor(plain, SGD)
    for number, (x, y) in enumerate(batches):
        executor.step(number, x, y)
    assert_same(rule, plain)
    assert lightning.global_step == 2


def test_fit__stops_at_max_steps_and_trains_a_rule_that_was_left_in_evaluation_mode(tmp_path):
    rule = build().eval()
    lightning = trainer(tmp_path, max_epochs=-1, max_steps=3)
    lightning.fit(LocalModule(rule, SGD), loader())
    plain = build()
    executor = LocalExecutor(plain, SGD)
    for number, (x, y) in enumerate(list(loader())[:3]):
        executor.step(number, x, y)
    assert_same(rule, plain)


@pytest.mark.parametrize("stop", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 6}], ids=["epoch", "middle"])
def test_resume__gives_the_bits_of_an_uninterrupted_run(tmp_path, stop):
    def module():
        scheduler = partial(StepLR, step_size=3, gamma=0.5)
        return LocalModule(build(), SGD, scheduler=scheduler, interval="step")

    whole = module()
    trainer(tmp_path, max_epochs=4).fit(whole, loader())
    saving = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=2, save_on_train_epoch_end=False)
    first = trainer(tmp_path, enable_checkpointing=True, callbacks=[saving], **stop)
    first.fit(module(), loader())
    resumed, second = module(), trainer(tmp_path, max_epochs=4)
    second.fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.global_step == 4 * BATCHES
    assert_same(resumed.rule, whole.rule)


def test_checkpoint__holds_no_code_and_loads_into_a_new_module(tmp_path):
    module, lightning = LocalModule(build(), SGD), trainer(tmp_path)
    lightning.fit(module, loader())
    lightning.save_checkpoint(tmp_path / "run.ckpt")
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["global_step"] == 2 * BATCHES
    other = LocalModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True, rule=build(), optimizer=SGD)
    x = next(iter(loader()))[0]
    assert torch.equal(other.eval()(x), module.eval()(x))


def test_loggers__get_losses_and_errors_of_every_block(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    rule = build("ff")  # its hidden blocks make predictions, two of three groups
    lightning = trainer(tmp_path, logger=loggers, log_every_n_steps=1)
    lightning.fit(LocalModule(rule, SGD), loader(), loader(batches=2))

    with open(Path(loggers[0].log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["loss/0"]]
    assert [int(row["step"]) for row in train] == list(range(2 * BATCHES))
    assert all(float(row[f"loss/{name}"]) > 0 for row in train for name in rule.net.names)
    (_, last) = (row for row in rows if row["validation_error"])
    found = evaluate(rule, loader(batches=2))
    assert float(last["validation_error"]) == pytest.approx(found.error)
    assert [float(last[f"validation_error/{name}"]) for name in rule.net.names] == pytest.approx(found.layer_errors)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(loggers[1].log_dir)
    board.Reload()
    assert [event.step for event in board.Scalars("loss/0")] == list(range(2 * BATCHES))
    assert {"loss/2", "error/2", "validation_error", "validation_error/1"} <= set(board.Tags()["scalars"])


def test_validation__leaves_out_blocks_that_make_no_prediction_and_picks_the_checkpoint(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="validation_error", filename="best")
    rule = build("fa")
    lightning = trainer(tmp_path, enable_checkpointing=True, callbacks=[saving])
    lightning.fit(LocalModule(rule, SGD), loader(), loader())
    assert {name for name in lightning.callback_metrics if "validation" in name} == {
        "validation_error",
        f"validation_error/{rule.net.names[-1]}",
    }
    assert float(saving.best_model_score) == pytest.approx(
        float(lightning.validate(ckpt_path="best", dataloaders=loader(), verbose=False)[0]["validation_error"])
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_test_and_predict__are_those_of_the_rule(tmp_path, precision):
    rule, lightning = build(), trainer(tmp_path, precision=precision)
    module = LocalModule(rule, SGD)
    (errors,) = lightning.test(module, loader(), verbose=False)
    logits = torch.cat(lightning.predict(module, loader()))
    rule.eval()
    assert errors["test_error"] == pytest.approx(evaluate(rule, loader()).error)
    assert torch.equal(logits, torch.cat([rule.predict(x) for x, _ in loader()]))
    images = DataLoader(torch.cat([x for x, _ in loader()]), batch_size=BATCH)
    assert torch.equal(logits, torch.cat(lightning.predict(module, images)))


@pytest.mark.parametrize(("interval", "expected"), [("step", 0.1 * 0.5**8), ("epoch", 0.1 * 0.5**2)])
def test_scheduler__steps_with_every_optimiser(tmp_path, interval, expected):
    module = LocalModule(build(), SGD, scheduler=partial(StepLR, step_size=1, gamma=0.5), interval=interval)
    logger = CSVLogger(tmp_path)
    lightning = trainer(tmp_path, logger=logger, callbacks=[LearningRateMonitor(logging_interval="step")])
    lightning.fit(module, loader())
    rates = [group["lr"] for optimizer in lightning.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([expected] * 3)


def test_training__stops_at_what_is_not_finite_and_keeps_the_last_good_checkpoint(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    bad = list(loader(batches=4))
    bad[2][0][0, 0] = torch.nan
    lightning = trainer(tmp_path, enable_checkpointing=True, callbacks=[saving])
    with pytest.raises(TrainingError, match=r"block 0 \(0\) is nan at step 2; lower the learning rate"):
        lightning.fit(LocalModule(build(), SGD), DataLoader(bad, batch_size=None))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_module__refuses_what_it_cannot_train():
    net = localprop.split(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    rule = localprop.methods.build("layerwise", net, num_classes=3, example=torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"rule: Layerwise trains in phases \(1, 2\).* use `localprop train`"):
        LocalModule(rule, SGD)
    with pytest.raises(ValueError, match="rule: need a rule, got a Linear"):
        LocalModule(nn.Linear(2, 2), SGD)
    with pytest.raises(ValueError, match=r"optimizer: need a function .* got a SGD; use lambda params"):
        LocalModule(build(), SGD(build().parameters()))
    with pytest.raises(ValueError, match="interval: must be 'step' or 'epoch', got 'batch'"):
        LocalModule(build(), SGD, interval="batch")


@pytest.mark.parametrize(
    ("settings", "module", "message"),
    [
        ({"strategy": "ddp", "devices": 1}, {}, r"strategy: DDPStrategy .*LocalDDPStrategy\(\)"),
        ({"precision": "bf16-mixed"}, {"accumulate": 0}, "accumulate: must be at least 1"),
        ({}, {"clip_norm": -1.0}, "clip_norm: must be positive"),
        ({"precision": "bf16-true"}, {}, "precision: must be one of 32-true, 64-true, bf16-mixed, got 'bf16-true'"),
        ({}, {"optimizer": list}, r"optimizer: must build a torch\.optim\.Optimizer, got a list"),
        ({}, {"scheduler": ReduceLROnPlateau}, "scheduler: must build .* got a ReduceLROnPlateau"),
        ({}, {"scheduler": type}, "scheduler: must build .* got a type"),
    ],
)
def test_fit__refuses_settings_that_would_train_otherwise(tmp_path, settings, module, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings).fit(LocalModule(build(), **{"optimizer": SGD, **module}), loader())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": torch.zeros(4, 8)}, "batch: need a pair"),
        ((torch.zeros(4, 8),), "batch: need a pair"),
        ((torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64)), "samples of shape"),
        ((torch.zeros(4, 8), torch.full((4,), 3)), "labels must lie in 0 .. 2"),
        ((torch.zeros(4, 8), torch.zeros(4)), "y: "),
    ],
)
def test_fit__refuses_batches_that_do_not_fit(tmp_path, batch, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(LocalModule(build(), SGD), DataLoader([batch], batch_size=None))


def test_import__says_which_extra_is_missing():
    code = "import sys; sys.modules['lightning'] = None; import localprop.integrations.lightning"
    environment = {**os.environ, "PYTHONPATH": str(Path(localprop.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "ImportError: localprop.integrations.lightning needs" in done.stderr
    assert "pip install 'localprop[lightning]'" in done.stderr


def in_processes(method, processes, directory):
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), method, str(processes), str(directory)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(directory / f"{method}-{processes}-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes__have_the_gradients_of_one(tmp_path):
    (alone,) = in_processes("dcl", 1, tmp_path)
    for rank in in_processes("dcl", 2, tmp_path):
        assert rank["global_step"] == alone["global_step"] == 3
        assert len(rank["gradients"]) == len(alone["gradients"]) > 0
        for mean, joint in zip(rank["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mean, joint, rtol=1e-9, atol=1e-12)
        for name, value in rank["state"].items():
            torch.testing.assert_close(value, alone["state"][name], rtol=1e-9, atol=1e-12, msg=name)
        assert float(rank["validation_error"]) == pytest.approx(float(alone["validation_error"]))


@pytest.mark.slow
def test_two_processes__end_alike_with_batch_normalisation(tmp_path):
    first, second = (rank["state"] for rank in in_processes("pred", 2, tmp_path))
    assert any("running_mean" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
