"""Image files of every mode, orientation and state of repair."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from localprop.data import DataError, ImageData, ImageSet, read_image
from localprop.data.augment import Augmentation
from localprop.data.images import decode, is_gray

RAMP = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)
COLOUR = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_opaque_gray_keeps_its_values_in_every_mode(mode: str, channels: int, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP).convert(mode), tmp_path / "image.png")
    pixels = read_image(path, channels=channels, size=None)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(RAMP).expand(channels, -1, -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr"])
def test_colour_modes(mode: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOUR).convert(mode), tmp_path / "image.tiff")
    pixels = read_image(path, channels=3, size=None)
    assert (pixels.int() - torch.from_numpy(COLOUR).permute(2, 0, 1).int()).abs().max() <= 3
    gray = read_image(path, channels=1, size=None)
    luma = torch.from_numpy(COLOUR @ np.array([0.299, 0.587, 0.114]))
    assert (gray[0].double() - luma).abs().max() <= 2


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP > 100), tmp_path / "image.png")
    assert torch.equal(read_image(path, channels=1, size=None)[0], torch.from_numpy((RAMP > 100) * np.uint8(255)))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_cut_off(ending: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / f"image.{ending}")
    for channels in (1, 3):
        pixels = read_image(path, channels=channels, size=None)
        assert torch.equal(pixels, torch.from_numpy(RAMP).expand(channels, -1, -1))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_laid_on_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putpixel((1, 0), 1)
        path = saved(image, tmp_path / "image.png", transparency=1)
    else:
        path = saved(image.convert(mode), tmp_path / "image.png")
    for channels in (1, 3):
        pixels = read_image(path, channels=channels, size=None)
        assert pixels[:, 0].tolist() == [[0, 255]] * channels


def test_the_orientation_of_the_camera_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be shown turned clockwise
    path = saved(Image.fromarray(COLOUR), tmp_path / "image.png", exif=exif)
    expected = torch.from_numpy(np.rot90(COLOUR, k=-1).copy()).permute(2, 0, 1)
    assert torch.equal(read_image(path, channels=3, size=None), expected)


@pytest.mark.parametrize("white", [1, 255])
def test_floating_point_is_scaled_by_its_white(white: int, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.float32) / 255 * white), tmp_path / "image.tiff")

    assert np.array_equal(read_image(path, channels=1, size=None)[0], RAMP)
    assert np.array_equal(read_image(path, channels=3, size=None), np.stack([RAMP] * 3))
    assert is_gray(path, "image.tiff")


@pytest.mark.parametrize("white", [1, 255])
def test_floating_point_may_leave_its_scale_by_rounding(white: int, tmp_path: Path) -> None:
    pixels = RAMP.astype(np.float32) / 255 * white
    pixels[pixels == 0] -= 1e-7
    pixels[pixels == white] *= 1 + 2e-7
    path = saved(Image.fromarray(pixels), tmp_path / "image.tiff")

    assert np.array_equal(read_image(path, channels=1, size=None)[0], RAMP)


@pytest.mark.parametrize("wrong", [-0.5, 256.0, np.nan, np.inf])
def test_floating_point_of_no_known_scale_is_refused(wrong: float, tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0.5, wrong]], dtype=np.float32)), tmp_path / "image.tiff")
    with pytest.raises(DataError, match=r"image\.tiff .* save them in 0 \.\. 1 or in 0 \.\. 255"):
        read_image(path, channels=1, size=None)


@pytest.mark.parametrize(("size", "shape"), [(4, (1, 4, 4)), ((3, 5), (1, 3, 5)), (64, (1, 64, 64))])
def test_any_size_is_resized(size: int | tuple[int, int], shape: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP), tmp_path / "image.png")
    assert read_image(path, channels=1, size=size).shape == shape


def test_a_file_is_resized_as_the_data_set_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "image.png")
    images = ImageSet(torch.from_numpy(pixels)[None, None], torch.tensor([0]))
    data = ImageData("toy", images, images, ("a", "b"), (0.5,), (0.5,), Augmentation()).resized(7)
    difference = read_image(path, channels=1, size=7).int() - data.train.images[0].int()
    assert difference.abs().max() <= 1


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.png does not exist"):
        read_image(tmp_path / "missing.png", channels=1, size=28)
    with pytest.raises(DataError, match="is a directory"):
        read_image(tmp_path, channels=1, size=28)
    for name, content in (("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is no image that can be read"):
            read_image(tmp_path / name, channels=1, size=28)
    with pytest.raises(ValueError, match=r"channels must be 1 .* got 2"):
        read_image(saved(Image.fromarray(RAMP), tmp_path / "ok.png"), channels=2, size=28)


@pytest.mark.parametrize("ending", ["png", "jpeg", "webp"])
def test_a_truncated_file_is_refused(ending: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"image.{ending}")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=rf"image\.{ending} is no image that can be read") as caught:
        read_image(path, channels=3, size=None)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(["png", "jpeg", "webp", "bmp", "gif", "tiff"]),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_give_pixels_or_one_error(form: str, position: int, value: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, form)
    content = bytearray(buffer.getvalue())
    content[position % len(content)] = value
    try:
        shape = decode(bytes(content), "the image", channels=3, size=8).shape
    except DataError:
        return
    assert shape == (3, 8, 8)
