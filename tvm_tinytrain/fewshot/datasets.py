"""Images by class, as the sampler of episodes sees them: folders of class folders, or arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import ImportModelError, ShapeError, ToolMissingError

Images = npt.NDArray[np.float32]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
_PART = 1 << 16


@dataclass(frozen=True)
class Dataset:
    """Classes of samples. Reads like a list of classes; `load` gives pixels.

    name: of the domain, for tables. classes: names. groups: for each class one integer per sample; samples of the
    same group show the same object (frames of one track), so that support and query must not share a group. All
    different where there are no groups. reader: (class, sample indices) → float32[n, 3, size, size] in [-1, 1]; its
    method ``digest()``, if it has one, returns a text that changes with what it reads.
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[npt.NDArray[np.int64], ...] = field(repr=False)
    reader: Callable[[int, npt.NDArray[np.int64]], Images] = field(repr=False, compare=False)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each class."""
        return tuple(len(group) for group in self.groups)

    @cached_property
    def divisible(self) -> tuple[int, ...]:
        """Samples of each class that has two groups or more; 0 for others: support and query would share the one."""
        return tuple(len(group) if len(np.unique(group)) > 1 else 0 for group in self.groups)

    def digest(self) -> str:
        """16 hex digits of the names of the classes, the groups of their samples, and the samples.

        The reader's ``digest()`` stands for the samples; without it, the first and the last of each class do.
        """
        known = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for group in self.groups:
            known.update(np.asarray(group, "<i8").tobytes() + b"\n")
        contents = getattr(self.reader, "digest", None)
        if callable(contents):
            known.update(str(contents()).encode())
        else:
            for label, size in enumerate(self.sizes):
                ends = np.array([0, size - 1][:size], np.int64)
                known.update(np.asarray(self.load(label, ends)).tobytes())
        return known.hexdigest()[:16]

    def load(self, label: int, samples: npt.NDArray[np.int64]) -> Images:
        """Pixels of samples of one class, float32[n, channels, height, width] in [-1, 1]."""
        return self.reader(label, samples)


def from_folder(
    folder: str | Path,
    size: int,
    *,
    group_separator: str | None = None,
    name: str | None = None,
    least: int = 2,
) -> Dataset:
    """A folder of class folders of images, read when needed and resized to size × size RGB.

    group_separator: a file name ``<group><separator><rest>`` says which samples belong together, e.g. "_" for
    GTSRB's tracks. least: images that make a class; one suffices where nothing is held out. Names are taken in sorted
    order, hidden files and folders and other kinds are left out. Raises ImportModelError where there are fewer than two
    classes, ShapeError for a size below 1, ToolMissingError without Pillow.
    """
    root = Path(folder)
    _pillow()
    if size < 1:
        raise ShapeError("dataset", "size", size, "1 or more", "pass the width of the network's input")
    if group_separator == "":
        hint = "pass what stands between the group and the rest of a file's name, or nothing"
        raise ImportModelError("dataset", "group separator", "an empty text", 'e.g. "_"', hint)
    hint = "pass a folder that holds one folder of images for each class"
    if not root.is_dir():
        raise ImportModelError("dataset", str(root), "no such folder", "a folder", hint)
    try:
        files = {_text(sub.name): _images(sub) for sub in _visible(root) if sub.is_dir()}
    except OSError as error:
        raise ImportModelError("dataset", str(root), error, "folders that can be read", hint) from error
    files = {key: found for key, found in files.items() if len(found) >= least}
    if len(files) < 2:
        images = f"{least} or more images" if least > 1 else "images"
        found = f"{len(files)} classes of {images} ({', '.join(SUFFIXES)})"
        raise ImportModelError("dataset", str(root), found, "2 or more classes", hint)
    paths = tuple(tuple(found) for found in files.values())
    groups = tuple(_groups([p.stem for p in found], group_separator) for found in paths)
    return Dataset(
        _text(name or root.name or root.resolve().name), tuple(files), groups, _FolderReader(paths, size)
    )


def _images(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _text(name: str) -> str:
    """A name that can be printed and stored: bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def from_arrays(
    images: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    *,
    groups: npt.NDArray[np.integer] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Samples float[n, …], in the network's range, and their labels [n]; groups [n] as in `Dataset`."""
    if labels.shape != images.shape[:1] or (groups is not None and groups.shape != labels.shape):
        found = f"images {images.shape}, labels {labels.shape}"
        raise ShapeError(
            "dataset", "arrays", found, "one label (and group) for each image", "check the shapes"
        )
    names = np.unique(labels)
    rows = [np.flatnonzero(labels == value) for value in names]
    ids = np.arange(len(labels)) if groups is None else groups

    reader = _ArrayReader(np.asarray(images, np.float32), tuple(rows))
    return Dataset(name, tuple(str(v) for v in names), tuple(ids[r].astype(np.int64) for r in rows), reader)


@dataclass(frozen=True)
class _FolderReader:
    paths: tuple[tuple[Path, ...], ...]
    size: int

    def __call__(self, label: int, samples: npt.NDArray[np.int64]) -> Images:
        return np.stack([read_image(self.paths[label][i], self.size) for i in samples])

    def digest(self) -> str:
        """Of the files' names and contents, and the size of the images; wherever the folder lies."""
        known = hashlib.sha256(f"{self.size}\n".encode())
        for found in self.paths:
            for path in found:
                known.update(os.fsencode(path.name) + b"\0" + _contents(path))
        return known.hexdigest()


@dataclass(frozen=True, eq=False)
class _ArrayReader:
    images: Images
    rows: tuple[npt.NDArray[np.int64], ...]

    def __call__(self, label: int, samples: npt.NDArray[np.int64]) -> Images:
        return self.images[self.rows[label][samples]]

    def digest(self) -> str:
        """Of all images, and which are whose."""
        known = hashlib.sha256(f"{self.images.shape}\n".encode())
        for part in (self.images, *self.rows):
            known.update(np.ascontiguousarray(part).data)
        return known.hexdigest()


def _contents(path: Path) -> bytes:
    """A file's size and contents; of more than 128 KiB its first and last 64, so that no data set takes long."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            content = file.read(_PART if size > 2 * _PART else size)
            if size > 2 * _PART:
                file.seek(-_PART, os.SEEK_END)
                content += file.read()
    except OSError as error:
        hint = "remove or repair the file"
        raise ImportModelError("dataset", str(path), error, "a file that can be read", hint) from error
    return hashlib.sha256(b"%d\n" % size + content).digest()


def read_image(path: Path, size: int) -> Images:
    """One image as float32[3, size, size] in [-1, 1], bilinear, anti-aliased.

    It stands upright as its EXIF orientation says, and lies on white where it is transparent.
    """
    image = _pillow()
    try:
        with image.open(path) as opened:
            pixels = np.asarray(_rgb(opened).resize((size, size), image.Resampling.BILINEAR))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        found = str(error) or type(error).__name__
        hint = "remove, repair or scale down the file"
        raise ImportModelError("dataset", str(path), found, "an image", hint) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(
        1
    )


def _rgb(opened: Any) -> Any:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(opened)
    if upright.mode == "F":
        raise ValueError("pixels of floating-point numbers, whose range is not known")
    clear = upright.info.get("transparency")
    if upright.mode.startswith("I"):  # convert("RGB") would cut them off at 255
        # PNG and PPM have 16 bits, whatever Pillow keeps them in.
        if not upright.mode.startswith("I;16") and opened.format not in ("PNG", "PPM"):
            raise ValueError("pixels of 32-bit or signed integers, whose range is not known")
        pixels = np.asarray(upright, np.float64)
        levels = np.rint(pixels / 257.0).clip(0, 255)
        if clear is not None:
            levels[pixels == clear] = 255
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if isinstance(clear, tuple) and max(clear) > 255:
        raise ValueError("a transparent colour of 16 bits, of which the pixels as they are read have 8")
    if clear is not None or upright.mode in ("LA", "PA", "RGBA", "RGBa"):
        ink = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    return upright.convert("RGB")


def _groups(stems: list[str], separator: str | None) -> npt.NDArray[np.int64]:
    if separator is None:
        return np.arange(len(stems), dtype=np.int64)
    keys = [stem.split(separator)[0] for stem in stems]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys], np.int64)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        hint = "pip install 'tvm_tinytrain[report]', or pip install pillow"
        raise ToolMissingError("dataset", "Pillow", "not installed", "the package pillow", hint) from error
    return Image
