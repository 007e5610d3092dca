"""The selection's C, compiled once for each test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.selection.device import HERE, Device, compile_driver


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    program = tmp_path_factory.mktemp("device") / "select"
    found = Device(compile_driver(HERE / "select_driver.c", program))
    yield found
    assert found.close() == 0
