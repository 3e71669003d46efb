import io
import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from rich.console import Console

from localprop.report import comparison, comparison_figure, markdown, terminal, to_json
from localprop.report.curves import needs_log_scale, read_curves
from localprop.report.labels import human_count, human_ratio

LAYERS = [31.25, 24.5, 19.0, 17.25, 16.5, 16.0, 17.0, 18.5]
ERRORS = {0: 18.5, 1: 19.5, 2: 21.5}


def final(method="dcl", seed=0, **changes):
    shift = ERRORS[seed] - ERRORS[0]
    record = {
        "method": method,
        "model": "vgg8b",
        "data": "fashion-mini",
        "seed": seed,
        "epochs": 2,
        "test_error": ERRORS[seed],
        "layer_errors": [error + shift for error in LAYERS],
        "ensemble_error": 16.75 + shift,
        "ensemble_weights": "uniform",
        "parameters": 463_000,
        "extra_parameters": 5120,
        "step_seconds": 0.3,
        "peak_memory_bytes": 200_000_000,
        "train_seconds": 61.0 + seed,
        "weights_sha256": "0" * 64,
        "versions": {"torch": "2.9.1", "python": "3.12.1"},
        "commit": "0123abc",
        "settings": {"model": {"width": 0.25}, "batch_size": 128, "limit_batches": None},
        "hardware": {"cpu": "Some CPU", "threads": 2},
    }
    return record | changes


def evaluations(record, epochs=2):
    rows = [{"kind": "start"}]
    for epoch in range(1, epochs + 1):
        factor = 1 + 0.5 * (epochs - epoch)
        layers = [None if error is None else error * factor for error in record["layer_errors"]]
        row = {"kind": "evaluation", "step": 78 * epoch, "epoch": float(epoch), "split": "test"}
        rows.append({"kind": "train", "step": 78 * epoch - 1, "loss": 1.0})
        rows.append(row | {"error": record["test_error"] * factor, "layer_errors": layers})
        rows.append(row | {"split": "train", "error": 0.0, "layer_errors": layers})
    return rows


def write_run(directory, record):
    run = directory / record["method"] / f"seed-{record['seed']}"
    run.mkdir(parents=True)
    (run / "final.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations(record)))
    return run


def write_cost(directory, method="dcl", **changes):
    cost = {
        "method": method,
        "model": "vgg8b",
        "step_ratio": 0.81,
        "step_ratio_spread": [0.78, 0.85],
        "memory_ratio": 0.79,
        "live_ratio": 0.52,
    }
    (directory / method / "cost.json").write_text(json.dumps(cost | changes))


def curves_in(directory, row):
    return read_curves([directory / row.method / f"seed-{seed}" for seed in row.seeds], row)


@pytest.fixture
def directory(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, final("dcl", seed))
    write_cost(tmp_path)
    write_run(
        tmp_path,
        final("bp", layer_errors=[None] * 8, ensemble_error=None, ensemble_weights=None, extra_parameters=0),
    )
    return tmp_path


def test_a_row_holds_mean_and_sample_deviation_over_seeds(directory):
    row = comparison(directory, ["dcl"])[0]
    assert (row.seeds, row.num_seeds) == ((0, 1, 2), 3)
    assert row.test_error.mean == pytest.approx(59.5 / 3)
    assert row.test_error.std == pytest.approx(statistics.stdev(ERRORS.values()))
    assert [error.mean for error in row.layer_errors] == pytest.approx([error + 4 / 3 for error in LAYERS])
    assert row.ensemble_error.mean == pytest.approx(16.75 + 4 / 3)
    assert row.train_seconds == 62
    assert (row.step_ratio, row.step_ratio_spread) == (0.81, (0.78, 0.85))
    assert (row.memory_ratio, row.live_ratio) == (0.79, 0.52)
    assert [origin.commit for origin in row.provenance] == ["0123abc"]


def test_one_seed_has_no_deviation_and_missing_facts_stay_missing(directory):
    row = comparison(directory, ["bp"])[0]
    assert row.test_error.std is None
    assert row.layer_errors == (None,) * 8
    assert row.ensemble_error is None
    assert (row.step_ratio, row.step_ratio_spread, row.memory_ratio, row.live_ratio) == (None,) * 4
    cells = table_rows(markdown([row]))[-1]
    assert cells == ["bp", "18.50", *["–"] * 9, "0", "–", "–", "61"]


def test_rows_stand_in_the_order_asked_for(directory):
    assert [row.method for row in comparison(directory, ["dcl", "bp"])] == ["dcl", "bp"]
    assert [row.method for row in comparison(directory)] == ["bp", "dcl"]


def test_seeds_are_ordered_as_numbers(tmp_path):
    for seed in (10, 9):
        write_run(tmp_path, final() | {"seed": seed})
    assert comparison(tmp_path)[0].seeds == (9, 10)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "conv"}, "model"),
        ({"data": "mnist"}, "data"),
        ({"epochs": 3}, "epochs"),
        ({"settings": {"model": {"width": 0.5}, "batch_size": 128}}, "settings.model"),
        ({"settings": {"model": {"width": 0.25}, "batch_size": 128, "validation": 0.1}}, "settings.validation"),
    ],
)
def test_runs_of_another_protocol_are_refused(directory, changes, named):
    write_run(directory, final("pred", **changes))
    with pytest.raises(ValueError, match=rf"^{named} must be the same .*pred.seed-0.final\.json"):
        comparison(directory, ["dcl", "pred"])
    assert len(comparison(directory, ["dcl", "bp"])) == 2


def test_settings_that_a_comparison_varies_may_differ(tmp_path):
    shared = {"batch_size": 128}
    for method, seed in (("dcl", 0), ("dcl", 1), ("bp", 0)):
        varied = {"method": method, "seed": seed, "out": f"{method}/{seed}"}
        write_run(tmp_path, final(method, seed, settings=shared | varied))
    rows = comparison(tmp_path, ["dcl", "bp"])
    assert "Settings: batch_size 128." in markdown(rows)


def test_methods_may_bring_a_recipe_of_their_own_and_the_tables_say_so(tmp_path):
    usual = {"batch_size": 128, "optimizer": {"name": "AdamW", "lr": 0.0005}}
    own = {"batch_size": 64, "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9}}
    for method, settings in (("bp", usual), ("dcl", usual), ("pred", own)):
        write_run(tmp_path, final(method, settings=settings))
    rows = comparison(tmp_path, ["bp", "dcl", "pred"])
    told = "pred (batch_size 64, optimizer.name SGD, optimizer.lr 0.1, optimizer.momentum 0.9)"
    assert f"Trained by settings of their own: {told}." in markdown(rows)
    assert to_json(rows)["own_recipes"] == told
    assert to_json(rows[:2])["own_recipes"] == ""
    assert told.split(" (")[0] in str(terminal(rows).caption)


def test_seeds_of_one_method_must_share_the_method_settings(tmp_path):
    for seed, temperature in ((0, 1.0), (1, 0.1)):
        write_run(tmp_path, final("dcl", seed, settings={"method": {"temperature": temperature}}))
    with pytest.raises(ValueError, match=r"^settings\.method must be the same"):
        comparison(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"extra_parameters": 0}, {"ensemble_weights": "linear"}, {"layer_errors": [None, *LAYERS[1:]]}],
)
def test_seeds_of_one_method_must_have_one_build(directory, changes):
    (directory / "dcl" / "seed-1" / "final.json").write_text(json.dumps(final("dcl", 1, **changes)))
    with pytest.raises(ValueError, match="must be the same in every run"):
        comparison(directory, ["dcl"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "final.json is not valid"),
        (json.dumps(final())[:80], "final.json is not valid"),
        (json.dumps({"method": "dcl"}), "test_error: Field required"),
        (json.dumps(final(test_error=float("nan"))), "test_error: .*finite"),
        (json.dumps(final(test_error=101.0)), "test_error: .*100"),
        (json.dumps(final(test_error="18.5")), "test_error: .*number"),
        (json.dumps(final(layer_errors=[-1.0])), r"layer_errors\.0: "),
        (json.dumps(final("bp")), "is of method 'bp' and seed 0, but stands where"),
        (json.dumps(final(seed=1)), "is of method 'dcl' and seed 1, but stands where"),
    ],
)
def test_an_invalid_final_is_refused_by_file_and_field(directory, text, problem):
    path = directory / "dcl" / "seed-0" / "final.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        comparison(directory)
    assert str(path) in str(caught.value)


def test_a_missing_final_is_refused_by_file(directory):
    path = directory / "dcl" / "seed-1" / "final.json"
    path.unlink()
    with pytest.raises(ValueError, match="is missing: the run has not finished") as caught:
        comparison(directory)
    assert str(path) in str(caught.value)


def test_methods_that_were_not_run_or_are_repeated_are_refused(directory, tmp_path_factory):
    with pytest.raises(ValueError, match=r"'predsim' has no run in .*; methods found there: bp, dcl"):
        comparison(directory, ["dcl", "predsim"])
    with pytest.raises(ValueError, match="each must be given once"):
        comparison(directory, ["dcl", "dcl"])
    with pytest.raises(ValueError, match="holds no METHOD/seed-K"):
        comparison(tmp_path_factory.mktemp("empty"))


def test_a_cost_of_another_model_or_below_zero_is_refused(directory):
    write_cost(directory, model="conv")
    with pytest.raises(ValueError, match=r"cost\.json is of method 'dcl' and model 'conv'"):
        comparison(directory)
    write_cost(directory, step_ratio=-0.5)
    with pytest.raises(ValueError, match=r"cost\.json is not valid: step_ratio"):
        comparison(directory)


def table_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")] for line in lines]


def test_markdown_is_one_table_with_caption_and_a_meaning_for_each_column(directory):
    text = markdown(comparison(directory, ["bp", "dcl"]))
    header, rule, bp, dcl = table_rows(text)
    assert header[:3] == ["method", "error %", "b1"]
    assert header[9] == "b8"
    assert {len(header), len(rule), len(bp), len(dcl)} == {16}
    assert dcl[1:3] == ["19.83 ± 1.53", "32.58 ± 1.53"]
    assert dcl[-6:] == ["18.08 ± 1.53", "5.12K", "0.79x", "0.52x", "0.81x (0.78 to 0.85)", "62"]
    caption = text.splitlines()[0]
    for fact in (
        "vgg8b (width 0.25) on fashion-mini, 2 epochs, seeds 0 (bp); 0, 1, 2 (dcl)",
        "last epoch, mean ± standard deviation",
        "cpu Some CPU, threads 2",
        "torch 2.9.1, python 3.12.1",
        "Commit: 0123abc.",
    ):
        assert fact in caption
    meanings = [line.split("**")[1] for line in text.splitlines() if line.startswith("- **")]
    assert meanings == ["method", "error %", "b1 to b8", *header[10:]]
    assert "weights: uniform" in text


def test_every_origin_is_named(directory):
    path = directory / "dcl" / "seed-2" / "final.json"
    path.write_text(json.dumps(final("dcl", 2, commit=None, hardware={"cpu": "Other CPU"})))
    caption = markdown(comparison(directory)).splitlines()[0]
    assert "Hardware: cpu Some CPU, threads 2 / cpu Other CPU." in caption
    assert "Commit: 0123abc / unknown." in caption


def test_names_are_data(tmp_path):
    method = "a|b$c_$[red]"
    write_run(tmp_path, final(method, data="x|y <b>", title="A | B"))
    rows = comparison(tmp_path)
    text = markdown(rows)
    header, _, row = table_rows(text)
    assert len(row) == len(header)
    assert row[0] == r"a¦b$c_$\[red]"
    assert r"x\|y \<b>" in text
    assert r"is A \| B" in text
    assert method in render(terminal(rows)).replace("\n", "")
    comparison_figure(tmp_path, rows, tmp_path / "picture.png")


def test_json_is_plain_and_not_rounded(directory):
    document = to_json(comparison(directory, ["dcl", "bp"]))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    dcl, bp = document["rows"]
    assert dcl["test_error"] == {
        "mean": pytest.approx(59.5 / 3),
        "std": pytest.approx(statistics.stdev(ERRORS.values())),
    }
    assert (dcl["num_seeds"], dcl["step_ratio_spread"], dcl["extra_parameters"]) == (3, [0.78, 0.85], 5120)
    assert dcl["provenance"][0]["versions"] == {"torch": "2.9.1", "python": "3.12.1"}
    assert (bp["step_ratio"], bp["layer_errors"][0]) == (None, None)
    assert "b1 to b8" in document["columns"]


def render(table, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def test_terminal_shows_every_layer_whole_within_100_columns(directory):
    lines = render(terminal(comparison(directory, ["bp", "dcl"]))).splitlines()
    assert max(map(len, lines)) <= 100
    dcl = next(line for line in lines if line.strip().startswith("dcl"))
    assert "32.6 25.8 20.3 18.6 17.8 17.3 18.3 19.8" in dcl
    assert dcl.split()[-3:] == ["5.12K", "0.79x", "0.81x"]
    assert "…" not in "".join(lines)


def test_terminal_folds_a_deep_network(tmp_path):
    write_run(tmp_path, final(layer_errors=[float(block) for block in range(55)]))
    text = render(terminal(comparison(tmp_path)))
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{block}.0" in text.split() for block in range(55))


@given(st.integers(0, 10**12))
def test_counts_keep_three_digits(number):
    text = human_count(number)
    size = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1], 1)
    assert float(text.rstrip("KMB")) * size == pytest.approx(number, rel=5e-3)
    assert number >= 10**12 or len(text) <= 5


def test_counts_and_ratios_read_as_published():
    assert [human_count(n) for n in (0, 512, 5120, 71_800, 9_530_000, 999_999)] == [
        "0",
        "512",
        "5.12K",
        "71.8K",
        "9.53M",
        "1M",
    ]
    assert [human_ratio(None), human_ratio(0.7249)] == ["–", "0.72x"]


def test_curves_are_means_over_seeds_at_every_evaluation(directory):
    curves = curves_in(directory, comparison(directory, ["dcl"])[0])
    assert curves.epochs == (1.0, 2.0)
    assert [point.mean for point in curves.network] == pytest.approx([59.5 / 2, 59.5 / 3])
    assert curves.network[1].std == pytest.approx(statistics.stdev(ERRORS.values()))
    assert [layer[1].mean for layer in curves.layers] == pytest.approx([error + 4 / 3 for error in LAYERS])


def test_a_step_written_twice_by_a_resumed_run_counts_once(directory):
    run = directory / "bp" / "seed-0"
    row = evaluations(final("bp", layer_errors=[None] * 8))[2]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row | {"error": 11.0}) + "\n")
    curves = curves_in(directory, comparison(directory, ["bp"])[0])
    assert [point.mean for point in curves.network] == [11.0, 18.5]
    assert curves.layers == (None,) * 8


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"kind": "eval', r"metrics\.jsonl, line 1, is not valid"),
        ('{"kind": "evaluation", "split": "test"}', r"line 1, is not valid: step: Field required"),
        ('{"kind": "train"}', "no evaluation on the 'test' split"),
        ("\n".join(json.dumps(row) for row in evaluations(final(), epochs=3)), "at the same epochs"),
        ("\n".join(json.dumps(row) for row in evaluations(final(layer_errors=[1.0]))), "have 8 layer_errors"),
    ],
)
def test_metrics_that_cannot_be_drawn_are_refused(directory, text, problem):
    rows = comparison(directory, ["dcl"])
    (directory / "dcl" / "seed-1" / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=problem):
        comparison_figure(directory, rows, directory / "picture.png")
    assert not (directory / "picture.png").exists()


def test_log_scale_only_above_zero_and_beyond_a_decade(tmp_path):
    for method, best in (("decade", 1.0), ("flat", 4.0), ("zero", 0.0)):
        write_run(tmp_path, final(method, test_error=best, layer_errors=[20.0, None]))
    curves = {row.method: curves_in(tmp_path, row) for row in comparison(tmp_path)}
    assert needs_log_scale([curves["decade"]])
    assert needs_log_scale([curves["flat"], curves["decade"]])
    assert not needs_log_scale([curves["flat"]])
    assert not needs_log_scale([curves["decade"], curves["zero"]])


def has_color(picture, color):
    return bool((np.asarray(picture) == ImageColor.getrgb(color)).all(axis=-1).any())


def test_the_picture_shows_curves_and_costs(directory):
    def draw(name):
        comparison_figure(directory, comparison(directory, ["bp", "dcl"]), directory / name)
        return Image.open(directory / name).convert("RGB")

    first, again = draw("a.png"), draw("b.png")
    assert first.width == 2000
    assert first.tobytes() == again.tobytes()
    upper = (0, 0, first.width, first.height // 2)
    lower = (0, first.height * 2 // 3, first.width, first.height)
    write_cost(directory, memory_ratio=1.5)
    dearer = draw("c.png")
    assert dearer.crop(upper).tobytes() == first.crop(upper).tobytes()
    assert dearer.crop(lower).tobytes() != first.crop(lower).tobytes()
    assert [has_color(picture, "#D55E00") for picture in (first, dearer)] == [False, True]


def test_the_picture_can_be_svg_and_nothing_else(directory):
    rows = comparison(directory)
    comparison_figure(directory, rows, directory / "picture.svg")
    assert "<svg" in (directory / "picture.svg").read_text()
    with pytest.raises(ValueError, match=r"path must end in \.png or \.svg, got 'picture\.jpg'"):
        comparison_figure(directory, rows, directory / "picture.jpg")
    with pytest.raises(ValueError, match="rows must hold at least one method"):
        comparison_figure(directory, [], directory / "picture.png")


def test_many_methods_without_cost_or_local_predictions_can_be_drawn(tmp_path):
    for method in "abcdefg":
        write_run(tmp_path, final(method, layer_errors=[], ensemble_error=None))
    rows = comparison(tmp_path)
    comparison_figure(tmp_path, rows, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").width == 2000
    assert len(table_rows(markdown(rows))[0]) == 7  # no column for live tensors, which no run has measured


def test_drawing_leaves_no_pyplot_state(directory):
    program = (
        "import sys; from pathlib import Path; from localprop.report import comparison, comparison_figure\n"
        "directory = Path(sys.argv[1])\n"
        "comparison_figure(directory, comparison(directory), directory / 'picture.png')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
