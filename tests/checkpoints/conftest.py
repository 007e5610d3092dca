"""The checkpoints' C, compiled once for each test process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import HERE
from tests.selection.device import compile_driver


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(HERE / "checkpoint_driver.c", tmp_path_factory.mktemp("driver") / "checkpoint")
