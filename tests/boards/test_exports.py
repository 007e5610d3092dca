"""Exports: what other tools build of an archive trains as a session does; formats are checked by their structure.

Zephyr's west and arduino-cli are not used: a stand-in for Zephyr's CMake functions builds the module for this machine, and the Arduino
library and sketch are compiled for a Cortex-M7 with a stand-in for Arduino.h.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tvm_tinytrain as tt
from examples.exports import KINDS, main, step, step_answers, talk
from tests.building.adaptive_net import SHAPE, network, samples
from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.micro.exports import export_project
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.targets.boards import get_board
from tvm_tinytrain.targets.cmake_boards import cmake_folder
from tvm_tinytrain.targets.runtime_files import linked_arena_bytes

STEPS = 3


@cache
def module(target: str = "c -mcpu=cortex-m7") -> tt.TrainModule:
    example = (torch.zeros(SHAPE),)
    return tt.build(network(), target, example_inputs=example, optimizer=tt.SGD(0.05), name="small_net")


@cache
def adaptive_module(name: str, cache_bytes: int = 0) -> tt.TrainModule:
    """It carries the runtime's files for selection too."""
    update = tt.TaskAdaptive(candidates=2, cache_bytes=cache_bytes)
    example = (torch.zeros(SHAPE),)
    return tt.build(network(), "c -mcpu=cortex-m7", example_inputs=example, update=update, name=name)


@cache
def expected() -> tuple[list[float], np.ndarray]:
    with InProcess(module()) as library:
        return [library.step(*sample) for sample in samples(STEPS)], library.predict(samples(1)[0][0])


def commands() -> bytes:
    """Steps, an unknown letter, a prediction."""
    steps = [step(*sample) for sample in samples(STEPS)]
    return b"".join(steps) + b"?" + b"p" + samples(1)[0][0].tobytes()


def check_answers(answers: bytes) -> None:
    losses, output = expected()
    outputs = output.size
    assert len(answers) == STEPS * 8 + 4 + 4 + 4 * outputs
    for i, loss in enumerate(losses):
        status, value = struct.unpack_from("<if", answers, 8 * i)
        assert status == 0
        assert value == pytest.approx(loss, rel=1e-5)
    unknown, status = struct.unpack_from("<ii", answers, 8 * STEPS)
    assert (unknown, status) == (-5, 0)
    np.testing.assert_allclose(
        np.frombuffer(answers, "<f4", outputs, 8 * STEPS + 8), output.reshape(-1), rtol=1e-4, atol=1e-6
    )


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.host_compiler
@pytest.mark.needs("cmake")
@pytest.mark.parametrize("target", ["c -mcpu=cortex-m7", "llvm"])
def test_a_cmake_project_trains(tmp_path: Path, target: str) -> None:
    export_project(module(target), "cmake", tmp_path)
    run(["cmake", "-S", ".", "-B", "build", f"-Dtvm_tinytrain_DIR={cmake_folder()}"], tmp_path)
    run(["cmake", "--build", "build"], tmp_path)
    program = tmp_path / "build" / "small_net_loop"
    check_answers(subprocess.run([program], input=commands(), capture_output=True, check=True).stdout)


@pytest.mark.emulator
@pytest.mark.parametrize("added", ["", "-Os -flto=1"])
def test_bare_metal_firmware_trains(tmp_path: Path, added: str) -> None:
    export_project(module(), "bare-metal", tmp_path, "mps2-an500")
    flags = re.findall(r"^FLAGS = (.*)$", (tmp_path / "Makefile").read_text(), re.MULTILINE)
    run(["make", "-s", f"FLAGS={flags[0]} {added}"], tmp_path)
    check_answers(talk(tmp_path, commands()))


@pytest.mark.needs("arm-none-eabi-gcc")
@pytest.mark.parametrize(("spare", "memory"), [(4096, "SSRAM23"), (4088, "PSRAM")])
def test_bare_metal_firmware_has_its_arena_where_it_fits(tmp_path: Path, spare: int, memory: str) -> None:
    """Beside the arena SRAM holds the stack, the cache's own pool, and what the program keeps."""
    library, board = adaptive_module("cached", cache_bytes=10_000), get_board("mps2-an500")
    assert library.metadata["training"]["pools"]["cache"]["bytes"] == 10_000
    beside = linked_arena_bytes(board, library.metadata["memory"]["arena_bytes"]) + 10_000 + spare
    board = replace(board, stack_bytes=(board.chip.first("sram").bytes - beside) // 8 * 8)
    export_project(library, "bare-metal", tmp_path, board)
    assert f"*(.bss.tt_arena) }} > {memory}" in (tmp_path / "board.ld").read_text()
    run(["make", "-s"], tmp_path)


def test_bare_metal_firmware_that_does_not_fit_says_so(tmp_path: Path) -> None:
    library = adaptive_module("cached", cache_bytes=10_000)
    board = replace(get_board("nrf52840-dk"), stack_bytes=256 << 10)
    with pytest.raises(BoardError, match=r"arena of \d+ bytes, 272144 of stack and cache; allowed 262144"):
        export_project(library, "bare-metal", tmp_path, board)


@pytest.mark.emulator
def test_the_example_writes_every_kind_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--samples", "3"]) == 0
    for kind in KINDS:
        assert (tmp_path / kind / "README.md").stat().st_size > 200
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("trained on 3 digits on mps2-an500; losses ")
    assert all(0 < float(loss) < 20 for loss in last.split("losses ")[1].split(", "))
    with pytest.raises(RuntimeError, match="allowed status 0"):
        step_answers(b"\0" * 8, 2)


@pytest.mark.needs("cmake", "arm-none-eabi-gcc")
def test_cmake_refuses_kernels_for_another_machine(tmp_path: Path) -> None:
    export_project(module("llvm"), "cmake", tmp_path)
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={cmake_folder() / 'arm-none-eabi.cmake'}"
    command = ["cmake", "-S", ".", "-B", "build", f"-Dtvm_tinytrain_DIR={cmake_folder()}", toolchain]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "has kernels for x86_64-linux-gnu, the compiler makes arm-none-eabi" in " ".join(
        done.stderr.split()
    )


ZEPHYR = """\
# A stand-in for Zephyr's package: its functions by their documented meaning, for this machine.
function(zephyr_library_named name)
  add_library(${name} STATIC)
  set(ZEPHYR_CURRENT_LIBRARY ${name} PARENT_SCOPE)
  target_sources(app PRIVATE $<TARGET_OBJECTS:${name}>) # Zephyr links whole archives
  target_link_libraries(${name} PUBLIC m)
endfunction()
function(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_options)
  target_compile_options(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
endfunction()
function(zephyr_include_directories)
  foreach(folder ${ARGN})
    get_filename_component(path ${folder} ABSOLUTE)
    target_include_directories(app PRIVATE ${path})
    target_include_directories(${ZEPHYR_CURRENT_LIBRARY} PUBLIC ${path})
  endforeach()
endfunction()
enable_language(C)
file(WRITE ${CMAKE_BINARY_DIR}/empty.c "")
add_executable(app ${CMAKE_BINARY_DIR}/empty.c)
target_include_directories(app PRIVATE ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(app PRIVATE m)
file(STRINGS prj.conf settings REGEX "=y$")
foreach(setting ${settings})
  string(REGEX REPLACE "=.*" "" symbol ${setting})
  set(${symbol} y)
endforeach()
foreach(module ${ZEPHYR_EXTRA_MODULES})
  string(MD5 name ${module})
  add_subdirectory(${module}/zephyr ${CMAKE_BINARY_DIR}/${name})
endforeach()
"""
ZEPHYR_HEADERS = {
    "zephyr/kernel.h": "#pragma once\n#define __aligned(n) __attribute__((aligned(n)))\nstatic inline void k_yield(void) {}\n",
    "zephyr/device.h": "#pragma once\nstruct device { int ready; };\nstatic const struct device the_uart = {1};\n"
    "#define DT_CHOSEN(name) name\n#define DEVICE_DT_GET(node) (&the_uart)\n"
    "static inline int device_is_ready(const struct device *d) { return d->ready; }\n",
    "zephyr/drivers/uart.h": "#pragma once\n#include <stdio.h>\n#include <stdlib.h>\n"
    "static inline int uart_poll_in(const struct device *d, unsigned char *c) {\n"
    "  int b = getchar(); (void)d; if (b == EOF) { fflush(stdout); exit(0); } *c = (unsigned char)b; return 0; }\n"
    "static inline void uart_poll_out(const struct device *d, unsigned char c) { (void)d; putchar(c); }\n",
}


@pytest.mark.host_compiler
@pytest.mark.needs("cmake")
def test_a_zephyr_module_is_complete_and_trains(tmp_path: Path) -> None:
    root = tmp_path / "module"
    export_project(module(), "zephyr", root)
    described = yaml.safe_load((root / "zephyr" / "module.yml").read_text())
    assert described["name"] == "tinytrain_small_net"
    assert (
        (root / described["build"]["kconfig"]).read_text().startswith("config TINYTRAIN_SMALL_NET\n\tbool ")
    )
    assert (root / described["build"]["cmake"] / "CMakeLists.txt").is_file()
    assert all((root / folder).is_dir() for folder in described["samples"])
    sample = yaml.safe_load((root / "samples" / "loop" / "sample.yaml").read_text())
    assert sample["tests"]["tinytrain.small_net.loop"]["min_ram"] > 0
    symbols = (root / "samples" / "loop" / "prj.conf").read_text().splitlines()
    assert "CONFIG_TINYTRAIN_SMALL_NET=y" in symbols
    assert all(re.fullmatch(r"CONFIG_[A-Z_]+=(y|n|\d+)", line) for line in symbols)
    run(configure_zephyr(root, tmp_path), tmp_path)
    run(["cmake", "--build", "build"], tmp_path)
    program = tmp_path / "build" / "app"
    check_answers(subprocess.run([program], input=commands(), capture_output=True, check=True).stdout)


@pytest.mark.host_compiler
@pytest.mark.needs("cmake")
def test_several_zephyr_modules_fit_into_one_application(tmp_path: Path) -> None:
    """One that is fixed, two that carry the selection too; one of another version is refused."""
    root, others = tmp_path / "module", [tmp_path / "first", tmp_path / "second"]
    export_project(module(), "zephyr", root)
    for other in others:
        export_project(adaptive_module(other.name), "zephyr", other)
    settings = root / "samples" / "loop" / "prj.conf"
    settings.write_text(settings.read_text() + "CONFIG_TINYTRAIN_FIRST=y\nCONFIG_TINYTRAIN_SECOND=y\n")
    command = configure_zephyr(root, tmp_path, others)
    run(command, tmp_path)
    run(["cmake", "--build", "build"], tmp_path)
    program = tmp_path / "build" / "app"
    check_answers(subprocess.run([program], input=commands(), capture_output=True, check=True).stdout)
    symbols = subprocess.check_output(["nm", program], text=True)
    assert {"tt_first_library", "tt_second_library", "tt_small_net_library"} <= set(symbols.split())

    made = adaptive_module("second")
    newer = made.files | {"tt_rows.h": made.files["tt_rows.h"] + b"/* newer */"}
    export_project(replace(made, files=newer), "zephyr", others[1])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "another module has a different tinytrain-adapt" in " ".join(done.stderr.split())


def configure_zephyr(root: Path, folder: Path, others: Sequence[Path] = ()) -> list[str]:
    """The command that configures a module's sample, with a stand-in for Zephyr, in `folder`."""
    zephyr = folder / "zephyr"
    for name, content in ({"ZephyrConfig.cmake": ZEPHYR} | ZEPHYR_HEADERS).items():
        path = zephyr / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    listed = f"-DZEPHYR_EXTRA_MODULES={';'.join(map(str, others))}"
    sample = str(root / "samples" / "loop")
    return ["cmake", "-S", sample, "-B", "build", f"-DZephyr_DIR={zephyr}", listed]


ARDUINO_H = """\
#pragma once
#include <stddef.h>
#include <stdint.h>
struct SerialPort {
  void begin(unsigned long baud);
  int available();
  int read();
  size_t write(const uint8_t *bytes, size_t count);
  explicit operator bool() const;
};
extern SerialPort Serial;
void setup();
void loop();
"""


@pytest.mark.needs("arm-none-eabi-gcc")
def test_an_arduino_library_compiles(tmp_path: Path) -> None:
    root = tmp_path / "TinyTrain_SmallNet"
    export_project(module(), "arduino", root)
    lines = (root / "library.properties").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines)
    assert {
        "name",
        "version",
        "author",
        "maintainer",
        "sentence",
        "paragraph",
        "category",
        "url",
        "architectures",
    } <= set(fields)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", fields["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fields["version"])
    assert fields["category"] == "Data Processing"
    assert all((root / "src" / header).is_file() for header in fields["includes"].split(","))
    for line in (root / "keywords.txt").read_text().splitlines():
        assert re.fullmatch(r"\w+\t(KEYWORD[123]|LITERAL1)", line)
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    sketch = root / "examples" / "Loop" / "Loop.ino"
    assert sketch.parent.name == sketch.stem
    objects = [compile_sketch(sketch, [root], tmp_path), *compile_arduino(root, tmp_path)]
    check_linked(objects, tmp_path)


@pytest.mark.needs("arm-none-eabi-gcc")
def test_several_arduino_libraries_fit_into_one_sketch(tmp_path: Path) -> None:
    names, inputs = ("small_net", "first", "second"), []
    for name in names:
        made = module() if name == "small_net" else adaptive_module(name)
        export_project(made, "arduino", tmp_path / name)
        inputs += compile_arduino(tmp_path / name, tmp_path)
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    sketch = tmp_path / "Several.ino"
    heads = "".join(f"#include <tt_{name}.h>\n" for name in names)
    calls = "".join(f"  tt_loop_once(&tt_{name}_library, nullptr, nullptr, nullptr);\n" for name in names)
    sketch.write_text(f"{heads}#include <tt_loop.h>\nvoid setup() {{}}\nvoid loop() {{\n{calls}}}\n")
    roots = [tmp_path / name for name in names]
    check_linked([compile_sketch(sketch, roots, tmp_path), *inputs], tmp_path)


CORTEX_M7 = ["-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-Os"]
STRICT = ["-Wall", "-Wextra", "-Werror"]


def compile_arduino(root: Path, folder: Path) -> list[Path]:
    """What Arduino gives the linker for a library: an archive with dot_a_linkage, otherwise its objects."""
    objects = []
    for source in sorted((root / "src").glob("*.c")):
        objects.append(folder / f"{root.name}_{source.stem}.o")
        command = [
            "arm-none-eabi-gcc",
            "-std=gnu11",
            *CORTEX_M7,
            *STRICT,
            "-c",
            str(source),
            "-o",
            str(objects[-1]),
        ]
        run(command, folder)
    if "dot_a_linkage=true" not in (root / "library.properties").read_text().splitlines():
        return objects
    archive = folder / f"{root.name}.a"
    run(["arm-none-eabi-ar", "rcs", str(archive), *map(str, objects)], folder)
    return [archive]


def compile_sketch(sketch: Path, roots: Sequence[Path], folder: Path) -> Path:
    include = ["-I.", "-include", "Arduino.h", *(f"-I{root / 'src'}" for root in roots)]
    options = ["-std=gnu++11", "-fno-exceptions", *CORTEX_M7, *STRICT, *include, "-x", "c++"]
    run(["arm-none-eabi-g++", *options, str(sketch), "-c", "-o", "sketch.o"], folder)
    return folder / "sketch.o"


def check_linked(inputs: Sequence[Path], folder: Path) -> None:
    """Nothing of a library's is undefined or defined twice."""
    run(["arm-none-eabi-ld", "-r", *map(str, inputs), "-o", "all.o"], folder)
    undefined = subprocess.check_output(["arm-none-eabi-nm", "-u", "all.o"], cwd=folder, text=True)
    assert not [line for line in undefined.split() if line.startswith("tt_")]


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="'mbed'; allowed bare-metal, zephyr, arduino, cmake"):
        export_project(module(), "mbed", tmp_path)
    with pytest.raises(BoardError, match="cortex-a53; allowed a board with a Cortex-M"):
        export_project(module(), "bare-metal", tmp_path, "qemu-aarch64")
    with pytest.raises(BoardError, match="board of kind zephyr: found nrf52840-dk; allowed a board for kind"):
        export_project(module(), "zephyr", tmp_path, "nrf52840-dk")
    native: Any = type(
        "Native", (), {"name": "n", "files": {}, "metadata": {"kernels": {"form": "object", "triple": "x"}}}
    )()
    with pytest.raises(BoardError, match="object for x; allowed kernels in C"):
        export_project(native, "arduino", tmp_path)
    assert list(tmp_path.iterdir()) == []
