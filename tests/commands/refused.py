"""A command that must be refused: one line that says why, and a tree of files that is as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_tinytrain.cli import main


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: object, says: str) -> None:
    """Run ``tinytrain`` with words; it must end with 1, say `says` in one line, and write nothing into the folder."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main([str(word).replace("{}", str(folder)) for word in words]) == 1
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("tinytrain: error: ") and said.out == ""
    assert says in lines[-1]
    assert sorted(folder.rglob("*")) == before


def write_classes(root: Path, images: int = 2, classes: int = 2) -> None:
    """Class folders of tiny images."""
    for k in range(classes):
        folder = root / f"class{k}"
        folder.mkdir(parents=True)
        for i in range(images):
            Image.fromarray(np.full((4, 4), 50 * k + i, np.uint8)).save(folder / f"{i}.png")
