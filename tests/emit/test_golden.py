"""The C of one small network, word by word: a refactoring shows an empty diff, a change shows itself in review."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.emit.libraries import library
from tvm_tinytrain._version import __version__

FILES = ("tt_small.h", "tt_small.c", "tt_small_internal.h", "tt_small_kernels.c", "tt_small_params.c")


@pytest.mark.parametrize("name", FILES)
def test_text(golden: Callable[[str, str], None], name: str) -> None:
    golden(name, library().files[name].decode().replace(f'"{__version__}"', '"VERSION"'))


def test_nothing_else_is_emitted() -> None:
    assert set(library().files) == {*FILES, "tinytrain.h", "metadata.json"}


def test_metadata(golden: Callable[[str, str], None]) -> None:
    text = library().files["metadata.json"].decode()
    golden("metadata.json", re.sub(r'("versions": \{)[^}]*(\})', r"\1\2", text))
