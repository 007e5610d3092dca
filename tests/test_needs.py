"""Skipping by need: a test that needs a missing tool skips and says which one and how to get it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import TOOLS, missing

ROOT = Path(__file__).parents[1]
NEEDY = """
import pytest

@pytest.mark.emulator
def test_emulator(): pass

@pytest.mark.needs("cmake", "chromium")
def test_needs(): pass

@pytest.mark.board
def test_board(): pass

def test_nothing(): pass

def test_golden(golden):
    golden("out.c", "int x;\\n")
"""


def run(folder: Path, *flags: str, path: str) -> str:
    """Run NEEDY in a project that has this one's conftest and configuration, with only `path` on PATH."""
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests" / "test_needy.py").write_text(NEEDY)
    for name in ("tests/__init__.py", "tests/needs.py", "tests/conftest.py", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags]
    return subprocess.run(command, cwd=folder, env={"PATH": path}, capture_output=True, text=True).stdout


def test_every_package_is_installed_by_setup() -> None:
    script = (ROOT / "tools" / "system_packages.sh").read_text()
    listed = re.search(r'packages="(.*?)"', script, re.DOTALL)
    assert listed
    assert {name for tool in TOOLS.values() for name in tool.package.split()} <= set(listed[1].split())


def test_present_and_unknown() -> None:
    assert missing([]) == []
    with pytest.raises(KeyError):
        missing(["qemu-system-z80"])


def test_missing_tool_skips_with_its_name(tmp_path: Path) -> None:
    out = run(tmp_path, "--update-golden", path="/nonexistent")
    assert "2 passed, 3 skipped" in out
    assert "qemu-system-arm is missing: apt-get install qemu-system-arm (or run `make setup`)" in out
    assert "arm-none-eabi-gcc is missing" in out
    assert "cmake is missing" in out
    assert "chromium is missing" in out
    assert "--board NAME --port DEVICE" in out


def test_required_tool_fails(tmp_path: Path) -> None:
    out = run(tmp_path, "--require-tools", "-k", "needs or board", path="/nonexistent")
    assert "1 skipped, 3 deselected, 1 error" in out
    assert "cmake is missing" in out


def test_golden_file(tmp_path: Path) -> None:
    assert "no golden file" in run(tmp_path, "-k", "golden", path="")
    assert "1 passed" in run(tmp_path, "-k", "golden", "--update-golden", path="")
    assert "1 passed" in run(tmp_path, "-k", "golden", path="")
    (tmp_path / "tests" / "golden" / "out.c").write_text("int y;\n")
    out = run(tmp_path, "-k", "golden", path="")
    assert "-int y;\n+int x;" in out
