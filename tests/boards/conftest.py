"""A small library in C, written by hand, and sessions with it: the runtime is tested without the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tvm_tinytrain.targets.runtime_files import runtime_folder

HERE = Path(__file__).parent
HOST = pytest.param("host", marks=pytest.mark.host_compiler)
EMULATED = pytest.param("mps2-an500", marks=pytest.mark.emulator)
ARENA_BYTES = 4352


@dataclass(frozen=True)
class HandWritten:
    """What `Session` needs of a module."""

    name: str
    files: Mapping[str, bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def hand_written(arena_bytes: int = ARENA_BYTES, **replaced: bytes) -> HandWritten:
    """Return the library of tests/boards/library; `replaced` gives other contents for tt_fake_<key>."""
    files = {path.name: path.read_bytes() for path in sorted((HERE / "library").iterdir())}
    files["tinytrain.h"] = (runtime_folder() / "include" / "tinytrain.h").read_bytes()
    return HandWritten("fake", {**files, **replaced}, {"memory": {"arena_bytes": arena_bytes}})


@pytest.fixture(scope="session")
def fake() -> HandWritten:
    return hand_written()


@pytest.fixture(scope="session")
def built(fake: HandWritten, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return ``built(board)``: a built project of the library, once for each board and test run."""
    from tvm_tinytrain.micro import generate_project

    projects: dict[str, Any] = {}

    def project(board: str) -> Any:
        if board not in projects:
            projects[board] = generate_project(fake, board, tmp_path_factory.mktemp(board)).build()
        return projects[board]

    return project


@pytest.fixture(scope="session")
def fuzz_inputs(request: pytest.FixtureRequest) -> int:
    """How many random inputs a parser gets: ``pytest tests/boards --fuzz-inputs 1000000`` for more."""
    return int(request.config.getoption("--fuzz-inputs", default=100_000))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-inputs", type=int, default=100_000, metavar="N", help="inputs for each parser")
