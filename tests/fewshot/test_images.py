"""Image files of every kind as pixels, and which files and folders count."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_tinytrain.errors import ImportModelError, ShapeError
from tvm_tinytrain.fewshot.datasets import from_folder, read_image

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))


def write(folder: Path, *files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        Image.fromarray(RAMP).save(folder / name)


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".tif", ".webp", ".jpg", ".bmp"])
def test_formats_give_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(RAMP)
    image.save(tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    found = read_image(tmp_path / f"x{suffix}", 32)
    assert np.abs(found - (RAMP / 127.5 - 1.0)).max() < (0.03 if suffix == ".jpg" else 1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".pgm"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * np.uint16(257)).save(tmp_path / f"x{suffix}")
    assert np.allclose(read_image(tmp_path / f"x{suffix}", 32), RAMP / 127.5 - 1.0, atol=1e-6)


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.uint16) * np.uint16(257)
    pixels[:, 16:] += 1  # another grey than the transparent one, the same in 8 bits
    pixels[:, :16] = pixels[0, 16] - 1
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=int(pixels[0, 0]))
    found = read_image(tmp_path / "x.png", 32)
    assert (found[..., :16] == 1.0).all() and np.allclose(
        found[..., 16:], RAMP[:, 16:] / 127.5 - 1.0, atol=1e-6
    )


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow reads such pixels in 8 bits, which cannot be told from others."""
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "x.png", transparency=(0x1234, 0, 0))
    with pytest.raises(ImportModelError, match=r"x\.png: found a transparent colour of 16 bits"):
        read_image(tmp_path / "x.png", 32)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_lie_on_white(tmp_path: Path, mode: str) -> None:
    """Black ink, opaque on the right half only."""
    cover = np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, 0)
    path = tmp_path / "x.png"
    if mode == "P":
        image = Image.fromarray((cover // 255).astype(np.uint8), "P")
        image.putpalette([0] * 6)
        image.save(path, transparency=bytes([0, 255]))
    else:
        black = [np.zeros((32, 32), np.uint8)] * (len(mode) - 1)
        Image.fromarray(np.dstack([*black, cover]), mode).save(path)
    found = read_image(path, 32)
    assert (found[..., :16] == 1.0).all() and (found[..., 16:] == -1.0).all()


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP)
    exif = image.getexif()
    exif[0x112] = 6  # the camera was turned: columns are rows
    image.save(tmp_path / "x.png", exif=exif)
    assert np.allclose(read_image(tmp_path / "x.png", 32), RAMP.T / 127.5 - 1.0, atol=1e-6)


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        "header.ppm": b"P6\n-3 x\n",
        "maximum.pgm": b"P5\n3 3\n0\n123456789",
        "short.ppm": b"P6\n32 32\n255\n" + b"\0" * 5,
        "empty.jpg": b"",
        "text.png": b"hello",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "integers.tif")
    for name in [*bad, "float.tif", "integers.tif"]:
        with pytest.raises(ImportModelError, match=name):
            read_image(tmp_path / name, 16)
    write(tmp_path, "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImportModelError, match=r"huge\.png.*exceeds limit"):
        read_image(tmp_path / "huge.png", 16)


def test_hidden_folders_and_folders_named_like_images_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", ".thumbnails"):
        write(tmp_path / name, "0.png", "1.PNG", "._1.png", "2.webp", "3.tiff")
    (tmp_path / "a" / "extra.png").mkdir()
    data = from_folder(tmp_path, 8)
    assert data.classes == ("a", "b") and data.sizes == (4, 4)


@pytest.mark.parametrize(("least", "classes"), [(1, ("a", "b")), (2, ())])
def test_how_many_images_make_a_class(tmp_path: Path, least: int, classes: tuple[str, ...]) -> None:
    write(tmp_path / "a", "0.png")
    write(tmp_path / "b", "0.png", "1.png")
    (tmp_path / "empty").mkdir()
    if classes:
        assert from_folder(tmp_path, 8, least=least).classes == classes
        return
    with pytest.raises(ImportModelError, match=r"1 classes of 2 or more images \(\.jpg, .*\.tiff\)"):
        from_folder(tmp_path, 8, least=least)


def test_names_that_are_no_utf_8_can_be_printed(tmp_path: Path) -> None:
    root = Path(f"{tmp_path}/d\udcff")
    try:
        for name in ("a\udcfe", "b"):
            write(root / name, "0.png", "1.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    data = from_folder(root, 8)
    assert data.name == "d\\udcff" and data.classes == ("a\\udcfe", "b")
    assert data.load(0, np.array([1])).shape == (1, 3, 8, 8)
    shutil.rmtree(root)


@pytest.mark.parametrize("size", [0, -4])
def test_sizes_below_1(tmp_path: Path, size: int) -> None:
    with pytest.raises(ShapeError, match="size"):
        from_folder(tmp_path, size)


def test_an_empty_group_separator(tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match="group separator"):
        from_folder(tmp_path, 8, group_separator="")
