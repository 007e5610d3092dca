"""Libraries in this process, compiled once: tests that load the same sources share what the compiler made of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

from tvm_tinytrain.micro.in_process import InProcess


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Lives as long as the test process."""
    return tempfile.TemporaryDirectory(prefix="tinytrain-tests-")


def loaded(module: Any, *, cflags: Sequence[str] | None = None) -> InProcess:
    """`InProcess` with an arena of its own; the compiled library is the one of earlier calls with the same sources and flags."""
    return InProcess(module, cflags=cflags, build_dir=_folder().name)
