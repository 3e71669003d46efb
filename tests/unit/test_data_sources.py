"""Where data are found, in what shapes, and what is said when they are not or are broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import cifar, mnist, stl10, utils

from localprop import data
from localprop.data import DataError
from localprop.data.sources import data_root

Pixels = Sequence[np.ndarray]


def gray_images(count: int, size: int = 28, seed: int = 0) -> Pixels:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8))


def colour_images(count: int, size: int = 32, seed: int = 0) -> Pixels:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = None,
    as_struct: bool = True,
    coarse: Sequence[int] | None = None,
) -> None:
    if as_struct:
        column = pa.array(
            [{"bytes": image, "path": str(row)} for row, image in enumerate(images)],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    else:
        column = pa.array(images, pa.binary())
    table = pa.table({"image": column, "label": pa.array(labels, pa.int64())})
    if coarse is not None:
        table = table.append_column("coarse_label", pa.array(coarse, pa.int64()))
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def write_pair(root: Path, name: str, images: Pixels, labels: Sequence[int], **options: Any) -> None:
    for split in ("train", "test"):
        write_parquet(root / f"{name}-{split}.parquet", [encoded(image) for image in images], labels, **options)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist_layout(folder: Path, images: Pixels, labels: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", np.stack(images))
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.array(labels))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        print("Downloading")  # as some releases of torchvision do
        raise URLError("Name or service not known")

    monkeypatch.setattr(mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(cifar, "download_and_extract_archive", refuse)
    monkeypatch.setattr(stl10, "download_and_extract_archive", refuse)
    monkeypatch.setattr(
        utils, "_get_redirect_url", refuse
    )  # behind download_url, which passes over a file that is there


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_pair_keeps_pixels_and_order(as_struct: bool, tmp_path: Path) -> None:
    images, labels = gray_images(12), [*range(10), 3, 7]
    write_pair(tmp_path, "mnist", images, labels, as_struct=as_struct)
    loaded = data.load("mnist", root=str(tmp_path))
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(np.stack(images)))
    assert loaded.train.labels.tolist() == loaded.test.labels.tolist() == labels
    assert loaded.class_names == tuple("0123456789")
    assert (loaded.mean, loaded.std) == ((0.1307,), (0.3081,))
    assert loaded.augmentation == data.Augmentation()


def test_colour_pair_in_lossless_webp(tmp_path: Path) -> None:
    images = colour_images(10)
    for split in ("train", "test"):
        write_parquet(tmp_path / f"cifar10-{split}.parquet", [encoded(image, "WEBP") for image in images], range(10))
    loaded = data.load("cifar10", root=str(tmp_path))
    assert torch.equal(loaded.train.images.permute(0, 2, 3, 1), torch.from_numpy(np.stack(images)))
    assert loaded.augmentation == data.Augmentation(4, True)


def test_colour_files_become_what_the_set_demands(tmp_path: Path) -> None:
    images = gray_images(10)
    write_pair(tmp_path, "mnist", [np.stack([image] * 3, -1) for image in images], range(10))
    assert torch.equal(data.load("mnist", root=str(tmp_path)).train.images[:, 0], torch.from_numpy(np.stack(images)))


def test_class_names_of_the_file_go_first(tmp_path: Path) -> None:
    names = [f"digit {index}" for index in range(10)]
    write_pair(tmp_path, "mnist", gray_images(10), range(10), names=names)
    assert data.load("mnist", root=str(tmp_path)).class_names == tuple(names)
    write_pair(tmp_path, "mnist", gray_images(10), range(10), names=names[:9])
    assert "names 9 classes instead of 10" in one_line(lambda: data.load("mnist", root=str(tmp_path)))


def test_root_goes_before_the_variable_and_the_variable_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("root", "variable", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path / "variable"))
    assert data_root(str(tmp_path / "root")) == tmp_path / "root"
    assert data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("LOCALPROP_DATA")
    assert data_root(None) == tmp_path / "cache" / "localprop"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / ".cache" / "localprop"


def test_a_root_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data.root must be a directory" in one_line(lambda: data.load("mnist", root=str(tmp_path / "typo")))
    monkeypatch.setenv("LOCALPROP_DATA", str(tmp_path / "typo"))
    assert "LOCALPROP_DATA must be a directory" in one_line(lambda: data.load("mnist"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_layout_of_the_mnist_family(name: str, folder: str, tmp_path: Path) -> None:
    images = gray_images(10)
    write_mnist_layout(tmp_path / folder / "raw", images, range(10))
    loaded = data.load(name, root=str(tmp_path))
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(np.stack(images)))
    assert loaded.test.labels.tolist() == list(range(10))
    assert loaded.class_names == data.CATALOGUE[name].class_names


@pytest.mark.usefixtures("no_network")
def test_torchvision_layout_of_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack(colour_images(10))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = pickle.dumps({"data": images.transpose(0, 3, 1, 2).reshape(10, -1), "labels": list(range(10))})
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "data").write_bytes(content)
    (folder / "batches.meta").write_bytes(meta)
    # torchvision reads nothing but files of the checksums it knows: teach it those of this small set.
    listed = [["data", hashlib.md5(content).hexdigest()]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed)
    known = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", known)
    loaded = data.load("cifar10", root=str(tmp_path))
    assert torch.equal(loaded.train.images.permute(0, 2, 3, 1), torch.from_numpy(images))
    assert loaded.train.labels.tolist() == list(range(10))


@pytest.mark.usefixtures("no_network")
def test_torchvision_layout_of_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.stack(colour_images(4)), [0, 1, 2, 99]
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    content = pickle.dumps({"data": images.transpose(0, 3, 1, 2).reshape(4, -1), "fine_labels": labels})
    meta = pickle.dumps({"fine_label_names": list(data.CATALOGUE["cifar100"].class_names)})
    (folder / "data").write_bytes(content)
    (folder / "meta").write_bytes(meta)
    listed = [["data", hashlib.md5(content).hexdigest()]]
    monkeypatch.setattr(datasets.CIFAR100, "train_list", listed)
    monkeypatch.setattr(datasets.CIFAR100, "test_list", listed)
    known = {"filename": "meta", "key": "fine_label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR100, "meta", known)
    fine, coarse = (data.load(name, root=str(tmp_path)) for name in ("cifar100", "cifar100-super"))
    assert torch.equal(fine.train.images, coarse.train.images)
    assert (fine.train.labels.tolist(), coarse.train.labels.tolist()) == (labels, [4, 1, 14, 13])
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert fine.super_names == coarse.class_names
    assert coarse.super_of == ()


@pytest.mark.usefixtures("no_network")
def test_torchvision_layout_of_svhn_with_and_without_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    listed = {}
    for number, part in enumerate(("train", "extra", "test")):
        file = tmp_path / f"{part}_32x32.mat"
        pixels = np.stack(colour_images(3, seed=number)).transpose(1, 2, 3, 0)
        savemat(file, {"X": pixels, "y": np.array([[1], [10], [number + 2]], np.uint8)})  # 10 is the digit 0
        listed[part] = ["nowhere", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    plain, extra = (data.load(name, root=str(tmp_path)) for name in ("svhn", "svhn-extra"))
    assert plain.train.labels.tolist() == [1, 0, 2]
    assert extra.train.labels.tolist() == [1, 0, 2, 1, 0, 3]
    assert plain.test.labels.tolist() == extra.test.labels.tolist() == [1, 0, 4]
    expected = np.stack([*colour_images(3), *colour_images(3, seed=1)])
    assert torch.equal(extra.train.images.permute(0, 2, 3, 1), torch.from_numpy(expected))


@pytest.mark.usefixtures("no_network")
def test_a_package_that_torchvision_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needy(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(datasets, "SVHN", needy)
    message = one_line(lambda: data.load("svhn", root=str(tmp_path)))
    assert "pip install scipy" in message
    assert "svhn-train.parquet and svhn-test.parquet" in message


@pytest.mark.usefixtures("no_network")
def test_torchvision_layout_of_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack(colour_images(3, size=96))
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    contents = {"y.bin": bytes([1, 10, 2]), "X.bin": images.transpose(0, 3, 2, 1).tobytes(), "names": b"a\nb\n"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    listed = [[name, hashlib.md5(contents[name]).hexdigest()] for name in ("X.bin", "y.bin")]
    monkeypatch.setattr(datasets.STL10, "train_list", listed)
    monkeypatch.setattr(datasets.STL10, "test_list", listed)
    monkeypatch.setattr(datasets.STL10, "class_names_file", "names")
    loaded = data.load("stl10", root=str(tmp_path))
    assert torch.equal(loaded.train.images.permute(0, 2, 3, 1), torch.from_numpy(images))
    assert loaded.test.labels.tolist() == [0, 9, 1]
    pixels = images / 255
    np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)))


def test_parquet_files_of_the_parts_of_svhn(tmp_path: Path) -> None:
    write_pair(tmp_path, "svhn", colour_images(10), range(10))
    assert len(data.load("svhn", root=str(tmp_path)).train) == 10
    message = one_line(lambda: data.load("svhn-extra", root=str(tmp_path)))
    assert "holds svhn-train.parquet and svhn-test.parquet but not svhn-extra.parquet" in message
    write_parquet(tmp_path / "svhn-extra.parquet", [encoded(image) for image in colour_images(2, seed=1)], [3, 4])
    assert data.load("svhn-extra", root=str(tmp_path)).train.labels.tolist() == [*range(10), 3, 4]


def test_coarse_labels_of_a_parquet_pair(tmp_path: Path) -> None:
    write_pair(tmp_path, "set", gray_images(4, size=5), [0, 1, 2, 0], coarse=[1, 0, 1, 1])
    loaded = data.load(f"parquet:{tmp_path}")
    assert (loaded.super_names, loaded.super_of) == (("0", "1"), (1, 0, 1))
    assert loaded.resized(3).super_of == (1, 0, 1)
    write_pair(tmp_path, "set", gray_images(4, size=5), [0, 1, 2, 0], coarse=[1, 0, 1, 0])
    assert "every class into one group" in one_line(lambda: data.load(f"parquet:{tmp_path}"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "stl10"])
def test_without_files_and_network_one_line_lists_the_ways_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = one_line(lambda: data.load(name, root=str(tmp_path)))
    for part in (
        "Name or service not known",
        "--data.root",
        "LOCALPROP_DATA",
        f"{name}-train.parquet and {name}-test.parquet",
        f"torchvision's {data.CATALOGUE[name].torchvision_name} files",
        "fashion-mini",
    ):
        assert part in message
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_network")
def test_a_damaged_torchvision_file_is_told(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist_layout(raw, gray_images(10), range(10))
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    assert "torchvision could neither read" in one_line(lambda: data.load("mnist", root=str(tmp_path)))


def test_half_a_pair_is_told(tmp_path: Path) -> None:
    write_pair(tmp_path, "mnist", gray_images(10), range(10))
    (tmp_path / "mnist-test.parquet").unlink()
    message = one_line(lambda: data.load("mnist", root=str(tmp_path)))
    assert "holds mnist-train.parquet but not mnist-test.parquet" in message


def test_a_truncated_or_foreign_parquet_file_is_told(tmp_path: Path) -> None:
    write_pair(tmp_path, "mnist", gray_images(10), range(10))
    path = tmp_path / "mnist-test.parquet"
    for content in (path.read_bytes()[:-200], b"", b"no parquet at all"):
        path.write_bytes(content)
        message = one_line(lambda: data.load("mnist", root=str(tmp_path)))
        assert f"{path} cannot be read as Parquet" in message


def test_damage_inside_a_parquet_file_is_told(tmp_path: Path) -> None:
    write_pair(tmp_path, "mnist", gray_images(10), range(10))
    path = tmp_path / "mnist-train.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])
    assert str(path) in one_line(lambda: data.load("mnist", root=str(tmp_path)))


def test_a_damaged_image_is_told_with_file_and_row(tmp_path: Path) -> None:
    images = [encoded(image) for image in gray_images(10)]
    path = tmp_path / "mnist-train.parquet"
    write_pair(tmp_path, "mnist", gray_images(10), range(10))
    for damage in (images[6][:-60], b"", b"text"):
        write_parquet(path, [*images[:6], damage, *images[7:]], range(10))
        message = one_line(lambda: data.load("mnist", root=str(tmp_path)))
        assert message.startswith(f"{path}, row 6, is no image that can be read")
        assert "replace it or leave it out" in message


def test_gaps_wrong_columns_and_no_rows_are_told(tmp_path: Path) -> None:
    images = [encoded(image) for image in gray_images(3)]
    path = tmp_path / "set-train.parquet"
    write_parquet(tmp_path / "set-test.parquet", images, [0, 1, 0])

    def message() -> str:
        return one_line(lambda: data.load(f"parquet:{tmp_path}"))

    write_parquet(path, [images[0], None, images[2]], [0, 1, 0])
    assert f"{path}, row 1, has no image" in message()
    write_parquet(path, images, [0, 1, None])
    assert f"{path}, row 2, has no label" in message()
    write_parquet(path, [], [])
    assert f"{path} holds no images" in message()
    pq.write_table(pa.table({"img": images, "label": [0, 1, 0]}), path)
    assert "no column 'image' but ['img', 'label']" in message()
    pq.write_table(pa.table({"image": ["a", "b", "c"], "label": [0, 1, 0]}), path)
    assert "holds string in column 'image'" in message()
    pq.write_table(pa.table({"image": images, "label": ["x", "y", "x"]}), path)
    assert "holds string in column 'label'" in message()


@pytest.mark.parametrize("label", [-1, 10, 255])
def test_labels_out_of_range_are_told(label: int, tmp_path: Path) -> None:
    write_pair(tmp_path, "mnist", gray_images(10), [*range(9), label])
    message = one_line(lambda: data.load("mnist", root=str(tmp_path)))
    assert f"mnist-train.parquet must lie in 0..9, got {label} at index 9" in message


def test_another_data_set_under_the_name_is_told(tmp_path: Path) -> None:
    write_pair(tmp_path, "mnist", gray_images(10, size=20), range(10))
    assert "shape (1, 20, 20) instead of (1, 28, 28)" in one_line(lambda: data.load("mnist", root=str(tmp_path)))


def test_parquet_directory(tmp_path: Path) -> None:
    images = colour_images(6, size=8)
    write_pair(tmp_path, "birds", images, [0, 1, 2] * 2, names=["owl", "tit", "wren"])
    loaded = data.load(f"parquet:{tmp_path}")
    assert loaded.class_names == ("owl", "tit", "wren")
    assert loaded.image_shape == (3, 8, 8)
    pixels = np.stack(images) / 255
    np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(loaded.std, pixels.std((0, 1, 2)))
    (tmp_path / "more-train.parquet").write_bytes(b"")
    message = one_line(lambda: data.load(f"parquet:{tmp_path}"))
    assert "exactly one *-train.parquet, got birds-train.parquet, more-train.parquet" in message
    assert "got none" in one_line(lambda: data.load(f"parquet:{tmp_path / 'nowhere'}"))


def test_parquet_directory_without_names(tmp_path: Path) -> None:
    write_pair(tmp_path, "set", gray_images(4, size=5), [0, 2, 1, 0])
    loaded = data.load(f"parquet:{tmp_path}")
    assert loaded.class_names == ("0", "1", "2")
    assert loaded.image_shape == (1, 5, 5)
    write_pair(tmp_path, "set", gray_images(2, size=5), [0, 0])
    with pytest.raises(ValueError, match="two classes or more"):
        data.load(f"parquet:{tmp_path}")


def write_folders(root: Path, classes: Sequence[str], images: Pixels, ending: str = "png") -> None:
    for split in ("train", "test"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{number}.{ending}")


def test_folder(tmp_path: Path) -> None:
    images = gray_images(2, size=6)
    write_folders(tmp_path, ["cat", "bee"], images)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    loaded = data.load(f"folder:{tmp_path}", crop_padding=1)
    assert loaded.class_names == ("bee", "cat")
    assert loaded.train.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(loaded.train.images[2:, 0], torch.from_numpy(np.stack(images)))
    assert loaded.augmentation == data.Augmentation(1, False)


def test_folder_is_colour_as_soon_as_one_image_is(tmp_path: Path) -> None:
    write_folders(tmp_path, ["a", "b"], gray_images(1, size=6))
    Image.fromarray(colour_images(1, size=6)[0]).save(tmp_path / "test" / "b" / "colour.BMP")
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.image_shape == (3, 6, 6)
    assert len(loaded.test) == 3


def test_folder_of_differing_sizes(tmp_path: Path) -> None:
    write_folders(tmp_path, ["a", "b"], [*gray_images(1, size=6), np.zeros((9, 7), np.uint8)])
    message = one_line(lambda: data.load(f"folder:{tmp_path}"))
    assert "1.png is 7x9 pixels" in message
    assert "0.png is 6x6; pass --image-size" in message
    assert data.load(f"folder:{tmp_path}", image_size=5).image_shape == (1, 5, 5)


def test_broken_folders_are_told(tmp_path: Path) -> None:
    def message() -> str:
        return one_line(lambda: data.load(f"folder:{tmp_path}"))

    assert "train is no directory" in message()
    (tmp_path / "train").mkdir()
    assert "holds no class folders" in message()
    (tmp_path / "train").rmdir()
    write_folders(tmp_path, ["a", "b"], gray_images(2, size=6))
    (tmp_path / "train" / "b" / "0.png").write_bytes(b"broken")
    assert f"{tmp_path}/train/b/0.png is no image that can be read" in message()
    (tmp_path / "train" / "c").mkdir()
    assert "c holds no image" in message()
    (tmp_path / "train" / "c").rmdir()
    (tmp_path / "test" / "d").mkdir()
    assert "d is a class without training images; the classes are a, b" in message()


def test_a_folder_of_one_class_is_told(tmp_path: Path) -> None:
    write_folders(tmp_path, ["only"], gray_images(2, size=6))
    with pytest.raises(ValueError, match=r"two classes or more, got \['only'\]"):
        data.load(f"folder:{tmp_path}")


def test_constant_images_need_a_std(tmp_path: Path) -> None:
    write_folders(tmp_path, ["a", "b"], [np.full((6, 6), 77, np.uint8)] * 3)
    assert "constant channel; pass std" in one_line(lambda: data.load(f"folder:{tmp_path}"))
    assert data.load(f"folder:{tmp_path}", std=[1.0]).std == (1.0,)


def real_root(*names: str) -> str:
    root = os.environ.get("LOCALPROP_DATA")
    if not root or not all((Path(root) / f"{name}-train.parquet").is_file() for name in names):
        pytest.skip(f"needs LOCALPROP_DATA with {', '.join(names)}")
    return root


@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_the_real_set_is_as_the_catalogue_says(name: str) -> None:
    loaded = data.load(name, root=real_root(name))
    entry = data.CATALOGUE[name]
    assert (len(loaded.train), len(loaded.test)) == (entry.num_train, entry.num_test)
    assert loaded.image_shape == entry.image_shape
    assert loaded.class_names == entry.class_names
    pixels = loaded.train.images.double().div_(255)
    torch.testing.assert_close(torch.tensor(entry.mean), pixels.mean((0, 2, 3)).float(), rtol=0, atol=5.1e-5)
    torch.testing.assert_close(torch.tensor(entry.std), pixels.std((0, 2, 3)).float(), rtol=0, atol=5.1e-5)


def test_the_original_fashion_mnist_in_torchvisions_layout(tmp_path: Path) -> None:
    originals = Path(os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist"))
    files = sorted(originals.glob("*-ubyte.gz"))
    if len(files) != 4:
        pytest.skip("needs the four original files of Fashion-MNIST in FASHION_MNIST_DIR")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in files:
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    loaded = data.load("fashion-mnist", root=str(tmp_path))
    assert (len(loaded.train), len(loaded.test)) == (60_000, 10_000)
    pixels = loaded.train.images.float() / 255
    assert abs(float(pixels.mean()) - loaded.mean[0]) < 1e-4
    assert abs(float(pixels.std()) - loaded.std[0]) < 1e-4
