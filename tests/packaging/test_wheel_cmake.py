"""A wheel, installed, carries a CMake package: a project outside of the repository builds and runs an archive with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boards.test_exports import check_answers, commands, module
from tests.packaging.test_install import SOURCES
from tvm_tinytrain.micro.exports import export_project

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.host_compiler, pytest.mark.needs("cmake")]


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing but the wheel of these sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder / "out", source)
    (wheel,) = (folder / "out").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


@pytest.fixture
def cmake_dir(installed: Path, tmp_path: Path) -> Path:
    found = Path(run(installed, "-m", "tvm_tinytrain.targets", "--cmake-dir", cwd=tmp_path).strip())
    assert found.is_relative_to(installed.parents[1]) and not found.is_relative_to(ROOT)
    return found


def test_a_project_finds_the_package_and_trains(cmake_dir: Path, tmp_path: Path) -> None:
    export_project(module(), "cmake", tmp_path)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={cmake_dir}")
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert f"tvm_tinytrain_DIR:PATH={cmake_dir}" in cache
    run("cmake", "--build", tmp_path / "build")
    program = tmp_path / "build" / "small_net_loop"
    check_answers(subprocess.run([program], input=commands(), capture_output=True, check=True).stdout)


@pytest.mark.needs("arm-none-eabi-gcc")
def test_firmware_links_with_what_the_wheel_carries(cmake_dir: Path, tmp_path: Path) -> None:
    module().export(tmp_path / "small_net.tar")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.19)\nproject(user LANGUAGES C)\nfind_package(tvm_tinytrain REQUIRED)\n"
        "tinytrain_add_library(small_net ARCHIVE small_net.tar)\n"
        "tinytrain_add_firmware(firmware LIBRARY small_net BOARD mps2-an500)\n"
    )
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={cmake_dir / 'arm-none-eabi.cmake'}"
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dtvm_tinytrain_DIR={cmake_dir}", toolchain)
    run("cmake", "--build", tmp_path / "build")
    assert (tmp_path / "build" / "firmware.elf").read_bytes()[:4] == b"\x7fELF"
