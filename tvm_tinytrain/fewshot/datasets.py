"""Images by class, as the sampler of episodes sees them: folders of class folders, or arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import ImportModelError, ShapeError, ToolMissingError

Images = npt.NDArray[np.float32]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Dataset:
    """Classes of samples. Reads like a list of classes; `load` gives pixels.

    name: of the domain, for tables. classes: names. groups: for each class one integer per sample; samples of the
    same group show the same object (frames of one track), so that support and query must not share a group. All
    different where there are no groups. reader: (class, sample indices) → float32[n, 3, size, size] in [-1, 1].
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[npt.NDArray[np.int64], ...] = field(repr=False)
    reader: Callable[[int, npt.NDArray[np.int64]], Images] = field(repr=False, compare=False)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each class."""
        return tuple(len(group) for group in self.groups)

    def load(self, label: int, samples: npt.NDArray[np.int64]) -> Images:
        """Pixels of samples of one class, float32[n, channels, height, width] in [-1, 1]."""
        return self.reader(label, samples)


def from_folder(
    folder: str | Path, size: int, *, group_separator: str | None = None, name: str | None = None
) -> Dataset:
    """A folder of class folders of images, read when needed and resized to size × size RGB.

    group_separator: a file name ``<group><separator><rest>`` says which samples belong together, e.g. "_" for
    GTSRB's tracks. Names are taken in sorted order, hidden files and other kinds are left out. Raises
    ImportModelError where there are fewer than two classes with two images, ToolMissingError without Pillow.
    """
    root = Path(folder)
    _pillow()
    if not root.is_dir():
        hint = "pass a folder that holds one folder of images for each class"
        raise ImportModelError("dataset", str(root), "no such folder", "a folder", hint)
    files: dict[str, list[Path]] = {}
    for sub in sorted(p for p in root.iterdir() if p.is_dir()):
        found = sorted(
            p for p in sub.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if len(found) >= 2:
            files[sub.name] = found
    if len(files) < 2:
        hint = "pass a folder that holds one folder of images for each class"
        raise ImportModelError(
            "dataset", str(root), f"{len(files)} classes of 2 or more images", "2 or more", hint
        )
    paths = tuple(tuple(found) for found in files.values())
    groups = tuple(_groups([p.stem for p in found], group_separator) for found in paths)
    return Dataset(name or root.name, tuple(files), groups, _FolderReader(paths, size))


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


@dataclass(frozen=True, eq=False)
class _ArrayReader:
    images: Images
    rows: tuple[npt.NDArray[np.int64], ...]

    def __call__(self, label: int, samples: npt.NDArray[np.int64]) -> Images:
        return self.images[self.rows[label][samples]]


def read_image(path: Path, size: int) -> Images:
    """One image as float32[3, size, size] in [-1, 1], bilinear, anti-aliased."""
    image = _pillow()
    try:
        with image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((size, size), image.Resampling.BILINEAR))
    except OSError as error:
        raise ImportModelError(
            "dataset", str(path), error, "an image", "remove or repair the file"
        ) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(
        1
    )


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
