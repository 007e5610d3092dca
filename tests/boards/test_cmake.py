"""The CMake package: another project uses an archive; firmware that a session's protocol can drive."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import ARENA_BYTES, hand_written
from tvm_tinytrain.emit.model_library import pack
from tvm_tinytrain.micro.elf import read_program
from tvm_tinytrain.micro.protocol import Link, read_info
from tvm_tinytrain.micro.remote import RemoteLibrary
from tvm_tinytrain.micro.runners import StartOptions, start
from tvm_tinytrain.targets.boards import BOARDS, get_board
from tvm_tinytrain.targets.cmake_boards import cmake_boards, cmake_folder

ROOT = Path(__file__).parents[2]

PROJECT = """\
cmake_minimum_required(VERSION 3.19)
project(user LANGUAGES C)
find_package(tvm_tinytrain REQUIRED)
if(NOT ARCHIVE)
  set(ARCHIVE fake.tar)
endif()
tinytrain_add_library(fake ARCHIVE ${ARCHIVE} BOARD ${LIBRARY_BOARD})
if(BOARD)
  tinytrain_add_firmware(firmware LIBRARY fake BOARD ${BOARD})
elseif(NOT LIBRARY_BOARD)
  add_executable(user main.c)
  target_link_libraries(user PRIVATE fake)
endif()
"""

MAIN = """\
#include <stdio.h>
#include "tt_fake.h"
static float arena[TT_FAKE_ARENA_BYTES / sizeof(float)];
int main(void) {
  if (tt_fake_init(arena, sizeof arena) != TT_OK) {
    return 1;
  }
  arena[0] = 1.0f;
  for (int i = 0; i < 10; i++) {
    tt_fake_step(arena);
    printf("%.6f\\n", (double)arena[24]);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder of somebody who has an archive and the package."""
    folder = tmp_path_factory.mktemp("user")
    kernels = {"form": "object", "triple": "arm-none-eabi", "mcpu": "cortex-m7"}
    write_archive(folder / "fake.tar", {}, {})
    whole = (folder / "fake.tar").read_bytes()
    (folder / "altered.tar").write_bytes(whole.replace(b"tt_fake_init", b"tt_fake_exit", 1))
    (folder / "cut.tar").write_bytes(whole[: whole.index(b"tt_fake.h\0")])
    write_archive(folder / "object.tar", {"kernels": kernels}, {"tt_fake_kernels.o": b""})
    (folder / "CMakeLists.txt").write_text(PROJECT)
    (folder / "main.c").write_text(MAIN)
    return folder


def write_archive(path: Path, metadata: dict[str, Any], more: dict[str, bytes]) -> None:
    described = {"name": "fake", "memory": {"arena_bytes": ARENA_BYTES}, **metadata}
    files = {**hand_written().files, **more, "metadata.json": json.dumps(described).encode()}
    path.write_bytes(pack(files))


def cmake(source: Path, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    configure = ["cmake", "-S", str(source), "-B", str(build), *options]
    done = subprocess.run(configure, capture_output=True, text=True)
    if done.returncode == 0:
        done = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True)
    return done


def toolchain(board: str) -> list[str]:
    triple = get_board(board).target.core.triple
    if triple == "arm-linux-gnueabihf":
        return [f"-DCMAKE_C_COMPILER={triple}-gcc"]
    return [f"-DCMAKE_TOOLCHAIN_FILE={cmake_folder() / triple}.cmake"]


@pytest.mark.host_compiler
@pytest.mark.needs("cmake")
def test_an_archive_in_another_project(user: Path, tmp_path: Path) -> None:
    done = cmake(user, tmp_path, f"-Dtvm_tinytrain_DIR={cmake_folder()}")
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(line) for line in subprocess.check_output([tmp_path / "user"]).split()]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@pytest.mark.needs("cmake", "arm-none-eabi-gcc", "qemu-system-arm", "aarch64-linux-gnu-gcc", "qemu-aarch64")
@pytest.mark.parametrize("board", ["mps2-an385", "mps2-an500", "mps3-an547", "qemu-aarch64", "nrf52840-dk"])
def test_firmware_by_cmake_answers(user: Path, tmp_path: Path, board: str) -> None:
    done = cmake(
        user, tmp_path, f"-Dtvm_tinytrain_DIR={cmake_folder()}", f"-DBOARD={board}", *toolchain(board)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if get_board(board).hardware:
        return
    connection = start(get_board(board), tmp_path / "firmware.elf", StartOptions())
    try:
        link = Link(connection.transport, board)
        link.connect(20.0)
        info = read_info(link, 20.0)
        assert (info.board, info.library, info.arena_bytes) == (board, "fake", ARENA_BYTES)
        RemoteLibrary(link, info).call("step", 1, 20.0)
    finally:
        connection.close()


@pytest.mark.needs("cmake", "arm-none-eabi-gcc")
@pytest.mark.parametrize(
    ("archive", "memory"),
    [
        ({"memory": {"arena_bytes": 5 << 20}}, "PSRAM"),
        ({"memory": {"arena_bytes": 3 << 20}}, "SSRAM23"),
        (
            {"memory": {"arena_bytes": 3 << 20}, "training": {"pools": {"cache": {"bytes": 1 << 20}}}},
            "PSRAM",
        ),
    ],
)
def test_the_arena_lies_where_it_has_room(
    user: Path, tmp_path: Path, archive: dict[str, Any], memory: str
) -> None:
    write_archive(tmp_path / "large.tar", archive, {})
    options = ["-DBOARD=mps2-an500", f"-DARCHIVE={tmp_path / 'large.tar'}", *toolchain("mps2-an500")]
    done = cmake(user, tmp_path / "build", f"-Dtvm_tinytrain_DIR={cmake_folder()}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = next(m for m in get_board("mps2-an500").chip.memories if m.name == memory)
    sections = read_program(tmp_path / "build" / "firmware.elf").sections
    arena = next(s for s in sections if s.bytes >= archive["memory"]["arena_bytes"])
    assert found.origin <= arena.address < found.origin + found.bytes


@pytest.mark.needs("cmake", "arm-none-eabi-gcc")
def test_firmware_by_this_repository(user: Path, tmp_path: Path) -> None:
    options = ["-DTINYTRAIN_BOARD=mps2-an500", f"-DTINYTRAIN_ARCHIVE={user / 'fake.tar'}"]
    done = cmake(ROOT, tmp_path, *options, *toolchain("mps2-an500"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "firmware.elf").exists()


@pytest.mark.needs("cmake", "arm-none-eabi-gcc")
def test_a_library_alone_is_compiled_for_its_board(user: Path, tmp_path: Path) -> None:
    options = ["-DLIBRARY_BOARD=mps2-an500", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *toolchain("mps2-an500")]
    done = cmake(user, tmp_path, f"-Dtvm_tinytrain_DIR={cmake_folder()}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
        assert {"-O3", *get_board("mps2-an500").target.core.cflags} <= set(entry["command"].split())


@pytest.mark.needs("cmake", "arm-none-eabi-gcc")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-DBOARD=mps2"], 'add_firmware(firmware): board "mps2" is not known; choose one of'),
        (["-DLIBRARY_BOARD=mps2"], 'add_library(fake): board "mps2" is not known; choose one of'),
        (
            ["-DLIBRARY_BOARD=mps2-an500", "-DBOARD=mps2-an386"],
            "fake is compiled for mps2-an500; give both the same",
        ),
        (
            ["-DARCHIVE=object.tar", "-DBOARD=mps2-an386"],
            "kernels for cortex-m7, the board runs those for cortex-m4;",
        ),
        (
            ["-DARCHIVE=object.tar", "-DLIBRARY_BOARD=mps2-an385"],
            "the board runs those for cortex-m0plus, cortex-m3;",
        ),
        (["-DARCHIVE=altered.tar"], "altered.tar: tt_fake.c was altered; export the module again"),
        (["-DARCHIVE=cut.tar"], "cut.tar has no tt_fake.h; export the module again"),
    ],
)
def test_what_is_wrong_is_said(user: Path, tmp_path: Path, options: list[str], message: str) -> None:
    found = [f"-Dtvm_tinytrain_DIR={cmake_folder()}", *toolchain("mps2-an500"), *options]
    done = cmake(user, tmp_path, *found)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


def test_the_boards_files_are_those_of_the_tables() -> None:
    written = {path.name: path.read_text() for path in (cmake_folder() / "boards").glob("*.cmake")}
    assert written == cmake_boards(), "run python -m tvm_tinytrain.targets.cmake_boards"
    assert {f"{name}.cmake" for name in BOARDS} - set(written) == {"host.cmake"}
