"""The table of data sets, the settings of `load`, and the set inside the package."""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from localprop import data
from localprop.data import CATALOGUE, Augmentation, DataError
from localprop.data.idx import read_idx
from localprop.data.store import channel_statistics

ROOT = Path(__file__).parents[2]
EMBEDDED = resources.files("localprop.data") / "embedded"


def test_every_entry_is_consistent() -> None:
    for name, entry in CATALOGUE.items():
        channels = entry.image_shape[0]
        assert (entry.mean is None) == (entry.std is None), name
        assert entry.mean is None or len(entry.mean) == len(entry.std) == channels, name
        classes = {"cifar100": 100, "cifar100-super": 20}.get(name, 10)
        assert len(entry.class_names) == len(set(entry.class_names)) == classes, name
        assert len(entry.super_of) in (0, classes), name
        assert set(entry.super_of) == set(range(len(entry.super_names))), name
        assert (entry.torchvision_name is None) or set(entry.torchvision_splits) >= {*entry.train_parts, "test"}, name
        assert entry.title, name
        assert entry.terms, name
        assert entry.source, name
    assert {name: entry.augmentation for name, entry in CATALOGUE.items()} == {
        "fashion-mini": Augmentation(flip=True),
        "fashion-mnist": Augmentation(flip=True),
        "mnist": Augmentation(),
        "hierarchical-digits": Augmentation(),
        "coloured-digits": Augmentation(),
        "textured-digits": Augmentation(),
        "cifar10": Augmentation(crop_padding=4, flip=True),
        "cifar100": Augmentation(crop_padding=4, flip=True),
        "cifar100-super": Augmentation(crop_padding=4, flip=True),
        "svhn": Augmentation(crop_padding=4),
        "svhn-extra": Augmentation(crop_padding=4),
        "stl10": Augmentation(crop_padding=4, flip=True),
    }


def test_the_classes_of_cifar100_lie_in_their_groups() -> None:
    """The coarse labels that the original files give to some fine ones."""
    entry = CATALOGUE["cifar100"]
    assert entry.class_names[:4] == ("apple", "aquarium_fish", "baby", "bear")
    assert entry.class_names[-2:] == ("woman", "worm")
    assert entry.super_of[:12] == (4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14)
    assert entry.super_of[-3:] == (8, 14, 13)
    assert [entry.super_of.count(group) for group in range(20)] == [5] * 20
    assert CATALOGUE["cifar100-super"].class_names == entry.super_names


def test_fashion_mini_is_as_the_catalogue_says() -> None:
    mini, entry = data.load("fashion-mini"), CATALOGUE["fashion-mini"]
    assert (len(mini.train), len(mini.test)) == (entry.num_train, entry.num_test) == (10_000, 2_000)
    assert mini.image_shape == entry.image_shape == (1, 28, 28)
    assert torch.bincount(mini.train.labels).tolist() == [1000] * 10
    assert torch.bincount(mini.test.labels).tolist() == [200] * 10
    mean, std = channel_statistics(mini.train.images)
    assert tuple(round(value, 4) for value in mean) == entry.mean == mini.mean
    assert tuple(round(value, 4) for value in std) == entry.std == mini.std
    assert mini.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # as the original files begin
    assert mini.test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_fashion_mini_has_the_pixels_that_were_committed() -> None:
    mini = data.load("fashion-mini")
    tensors = (mini.train.images, mini.train.labels, mini.test.images, mini.test.labels)
    digest = hashlib.sha256(b"".join(tensor.to(torch.uint8).numpy().tobytes() for tensor in tensors))
    assert digest.hexdigest() == "d5b91c929ef64cdf3fac6a13820932f698037ef77030a9584f3d6499a1ccee00"


def test_the_embedded_file_is_small_and_licensed() -> None:
    files = {entry.name: entry for entry in EMBEDDED.iterdir()}
    assert set(files) == {"fashion-mini.idx.xz", "NOTICE"}
    assert len(files["fashion-mini.idx.xz"].read_bytes()) <= 6_000_000
    notice = files["NOTICE"].read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "Permission is hereby granted, free of charge" in notice


@pytest.mark.slow
def test_the_script_makes_the_embedded_file(tmp_path: Path) -> None:
    originals = Path(os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist"))
    if len(list(originals.glob("*-ubyte.gz"))) != 4:
        pytest.skip("needs the four original files of Fashion-MNIST in FASHION_MNIST_DIR")
    output = tmp_path / "fashion-mini.idx.xz"
    command = [sys.executable, ROOT / "scripts" / "make_fashion_mini.py", originals, output]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, env=environment)
    made, committed = output.read_bytes(), (EMBEDDED / "fashion-mini.idx.xz").read_bytes()
    assert lzma.decompress(made) == lzma.decompress(committed)
    assert made == committed, "the same arrays, packed differently: is it another release of liblzma?"


def test_settings_override_the_defaults() -> None:
    mini = data.load("fashion-mini", image_size=16, mean=[0.5], std=[0.25], crop_padding=2, flip=False, cutout=3)
    assert mini.image_shape == (1, 16, 16)
    assert mini.test.images.shape == (2000, 1, 16, 16)
    assert (mini.mean, mini.std) == ((0.5,), (0.25,))
    assert mini.augmentation == Augmentation(2, False, 3)
    default = data.load("fashion-mini")
    assert default.augmentation == Augmentation(0, True)
    assert replace(default.augmentation, flip=False) == Augmentation()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"mean": [0.1, 0.2, 0.3]}, "mean must be 1 finite number"),
        ({"mean": []}, "mean must be 1 finite number"),
        ({"std": [0.0]}, "std must be above 0"),
        ({"crop_padding": -2}, "crop_padding must be 0 or more pixels, got -2"),
        ({"cutout": -1}, "cutout must be 0 or more pixels a side, got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load("fashion-mini", **settings)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("fashion_mini", "fashion-mini"), ("MNIST", "mnist"), ("cifar-10", "cifar10"), ("folder", "folder:DIR")],
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'; did you mean '{nearest}'"):
        data.load(name)


@pytest.mark.parametrize("name", ["", "qqq", "zip:x", "parquet:"])
def test_any_other_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=", ".join([*CATALOGUE, "folder:DIR", "parquet:DIR"])):
        data.load(name)


def test_a_root_that_is_not_used_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="data.root is ignored: fashion-mini"):
        data.load("fashion-mini", root=str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x08\x02\0\0\0\x05", b"\x01\0\x08\x01\0\0\0\0"],
)
def test_broken_idx_arrays_are_told(content: bytes) -> None:
    with pytest.raises(DataError, match=r"the file .* get the file again"):
        read_idx(content, "the file")


def test_idx_arrays_stand_one_after_another() -> None:
    first, second = read_idx(b"\0\0\x08\x02\0\0\0\x01\0\0\0\x02ab\0\0\x08\x01\0\0\0\x01c", "the file")
    assert first.tolist() == [[97, 98]]
    assert second.tolist() == [99]
