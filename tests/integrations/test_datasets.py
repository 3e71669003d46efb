"""Hugging Face datasets as they come: objects in memory, and what they write to disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from localprop import data
from localprop.cli import main
from localprop.data import DataError

NAMES = ClassLabel(names=["cat <b>", 'dog "é"'])


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pair(
    images: Sequence[Any],
    feature: Any = None,
    *,
    labels: Sequence[Any] | None = None,
    label: Any = NAMES,
    names: tuple[str, str] = ("image", "label"),
) -> DatasetDict:
    """Make a dataset whose splits are the same."""
    labels = [index % 2 for index in range(len(images))] if labels is None else labels
    features = Features(dict(zip(names, (feature or datasets.Image(), label), strict=True)))
    split = Dataset.from_dict(dict(zip(names, (list(images), labels), strict=True)), features=features)
    return DatasetDict(train=split, test=split)


def pictures(count: int = 8, *shape: int) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pixels(count, *(shape or (6, 5, 3)))]


def test_images_and_class_names_are_taken_whatever_the_columns_are_called() -> None:
    found = data.from_datasets(pair(pictures(), names=("img", "fine_label")))
    assert torch.equal(found.train.images.permute(0, 2, 3, 1), torch.from_numpy(pixels(8, 6, 5, 3)))
    assert found.train.labels.tolist() == [0, 1] * 4
    assert found.class_names == tuple(NAMES.names)
    assert found.augmentation == data.Augmentation()
    channel = found.train.images[:, 1] / 255
    assert found.mean[1] == pytest.approx(float(channel.mean()), rel=1e-5)


def test_a_shuffled_selection_keeps_its_own_order() -> None:
    chosen = DatasetDict({name: split.select([5, 0, 2]) for name, split in pair(pictures()).items()})
    expected = torch.from_numpy(pixels(8, 6, 5, 3)[[5, 0, 2]])
    assert torch.equal(data.from_datasets(chosen).test.images.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize(
    ("shape", "feature"),
    [
        ((6, 5), Array2D((6, 5), "uint8")),
        ((6, 5), List(List(Value("int64")))),
        ((1, 6, 5), Array3D((1, 6, 5), "int32")),
        ((6, 5, 1), Array3D((6, 5, 1), "uint8")),
        ((3, 6, 5), Array3D((3, 6, 5), "uint8")),
        ((6, 5, 3), Array3D((6, 5, 3), "uint8")),
    ],
)
def test_arrays_of_any_layout(shape: tuple[int, ...], feature: Any) -> None:
    arrays = pixels(4, *shape)
    found = data.from_datasets(pair([array.tolist() for array in arrays], feature))
    channels_first = arrays.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else arrays
    assert torch.equal(found.train.images, torch.from_numpy(channels_first.reshape(found.train.images.shape).copy()))
    assert found.image_shape[1:] == (6, 5)


def test_bytes_files_and_gray_images(tmp_path: Path) -> None:
    file = tmp_path / "gray.png"
    Image.fromarray(pixels(6, 5)).save(file)
    expected = torch.from_numpy(pixels(6, 5)).expand(4, 1, 6, 5)
    assert torch.equal(data.from_datasets(pair([str(file)] * 4)).train.images, expected)
    assert torch.equal(data.from_datasets(pair([file.read_bytes()] * 4, Value("binary"))).train.images, expected)


def test_images_of_many_sizes_are_resized_when_asked() -> None:
    mixed = pair([Image.fromarray(pixels(6 + index, 5)) for index in range(4)])
    assert data.from_datasets(mixed, image_size=8).image_shape == (1, 8, 8)
    with pytest.raises(DataError, match=r"row 1, is 5x7 pixels, .* row 0, is 5x6; pass --image-size"):
        data.from_datasets(mixed)


def test_integers_without_names_are_numbered_and_groups_of_classes_are_kept() -> None:
    numbered = pair(pictures(), labels=[0, 2, 1, 2, 0, 1, 2, 2], label=Value("int8"))
    assert data.from_datasets(numbered).class_names == ("0", "1", "2")
    groups = DatasetDict(
        {name: split.add_column("coarse_label", [1, 0] * 4) for name, split in pair(pictures()).items()}
    )
    found = data.from_datasets(groups)
    assert (found.super_names, found.super_of) == (("0", "1"), (1, 0))
    assert data.from_datasets(groups, label="coarse_label").train.labels.tolist() == [1, 0] * 4


def two_label_columns() -> DatasetDict:
    once = pair(pictures(), names=("image", "fine"))
    more = {name: split.add_column("coarse", [0, 1] * 4).cast_column("coarse", NAMES) for name, split in once.items()}
    return DatasetDict(more)


def stream() -> Any:
    return datasets.IterableDatasetDict({"train": pair(pictures())["train"].to_iterable_dataset()})


def parts(train: DatasetDict, **others: Dataset) -> DatasetDict:
    return DatasetDict(train=train["train"], **others)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "streamed": (stream, "is streamed, .* without streaming=True"),
    "no splits": (lambda: pair(pictures())["train"], r"has no splits; .*train_test_split"),
    "no dataset": (lambda: [1, 2], "must be a datasets.DatasetDict, got a list"),
    "no test split": (
        lambda: parts(pair(pictures()), validation=pair(pictures())["train"]),
        r"no split 'test' but \['train', 'validation'\]; rename one, .*test=",
    ),
    "empty": (lambda: parts(pair(pictures()), test=pair(pictures())["test"].select([])), "split test .* is empty"),
    "unlabelled": (lambda: pair(pictures(), labels=[0, 1, -1, 0] * 2), r"row 2, has the label -1, .*filter\("),
    "missing label": (lambda: pair(pictures(), labels=[0, None] * 4), "row 1, has no label"),
    "text label": (lambda: pair(pictures(), labels=["a"] * 8, label=Value("string")), "class_encode_column"),
    "real label": (lambda: pair(pictures(), labels=[0.5] * 8, label=Value("float32")), "must be class indices"),
    "missing image": (lambda: pair([None, pictures()[0]]), "row 0, has no image"),
    "text image": (lambda: pair(["a.png"] * 4, Value("string")), r"cast_column\('image', datasets.Image\(\)\)"),
    "no such file": (lambda: pair(["/nowhere/a.png"] * 4), "cannot be read .*/nowhere/a.png"),
    "no image": (lambda: pair([b"x"] * 4, Value("binary")), "row 0, is no image that can be read"),
    "real pixels": (
        lambda: pair([[[0.5, np.nan]]] * 4, List(List(Value("float32")))),
        r"row 0, column 'image', must hold integers 0..255, got float32 .*round\(\)",
    ),
    "large pixels": (lambda: pair([[[0, 256]]] * 4, List(List(Value("int64")))), r"got int64 in 0 .. 256"),
    "ragged": (lambda: pair([[[1, 2], [3]]] * 4, List(List(Value("int64")))), "rows of one length"),
    "which axis": (lambda: pair([pixels(3, 5, 3)] * 4, Array3D((3, 5, 3), "uint8")), r"\(H, W, C\) or \(C, H, W\)"),
    "transform": (lambda: pair(pictures()).with_transform(lambda batch: batch), "has a transform"),
    "two label columns": (two_label_columns, r"several columns of type ClassLabel, .* label='fine'"),
    "other classes": (
        lambda: parts(pair(pictures()), test=pair(pictures(), label=ClassLabel(names=["dog", "cat"]))["test"]),
        "name different classes",
    ),
    "one class": (lambda: pair(pictures(), labels=[0] * 8, label=ClassLabel(names=["a"])), "two classes or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_trained_on_is_refused_in_one_line(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as caught:
        data.from_datasets(make())
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there() -> None:
    with pytest.raises(DataError, match=r"no column 'imgae' \(did you mean 'image'\?\)"):
        data.from_datasets(pair(pictures()), image="imgae")
    with pytest.raises(DataError, match="image and label must be two columns"):
        data.from_datasets(pair(pictures()), label="image")


def test_a_saved_dataset_is_trained_on_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(pictures(16, 8, 8)).save_to_disk(tmp_path / "saved")
    assert torch.equal(data.load(f"hf:{tmp_path}/saved").train.images[:, 0], torch.from_numpy(pixels(16, 8, 8)))
    small = ["train", "--model", "fc", "--model.width", "0.0625", "--epochs", "1", "--threads", "1"]
    assert main([*small, "--data", f"hf:{tmp_path}/saved", "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    for directory in (tmp_path / "saved", tmp_path / "nowhere", tmp_path):
        assert main([*small, "--data", f"hf:{directory}", "--out", str(tmp_path / "other")]) == 2
        assert f"{directory} cannot be read" in capsys.readouterr().err


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what the import system sees of a package that is not there
    assert main(["train", "--data", "hf:x", "--out", "y"]) == 2
    assert "pip install 'localprop[hub]'" in capsys.readouterr().err
