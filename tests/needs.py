"""What a test may need from the machine, how to see whether it is there, and how to get it.

A test says what it needs by a marker: ``host_compiler``, ``emulator``, ``board`` or ``needs("cmake", ...)``;
one without a marker runs anywhere. `missing` answers for a list of tools, `MARKED` maps markers to tools.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tool:
    """One tool or data set: the first of `found_by` that exists (a command, or an absolute path) will do."""

    name: str
    found_by: tuple[str, ...]
    package: str

    def present(self) -> bool:
        return any(Path(it).exists() if it.startswith("/") else shutil.which(it) for it in self.found_by)

    def complaint(self) -> str:
        return f"{self.name} is missing: apt-get install {self.package} (or run `make setup`)"


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("cc", ("cc", "gcc", "clang"), "gcc libc6-dev"),
        Tool("cmake", ("cmake",), "cmake"),
        Tool("clang-format", ("clang-format",), "clang-format"),
        Tool("arm-none-eabi-gcc", ("arm-none-eabi-gcc",), "gcc-arm-none-eabi libnewlib-arm-none-eabi"),
        Tool("qemu-system-arm", ("qemu-system-arm",), "qemu-system-arm"),
        Tool(
            "aarch64-linux-gnu-gcc", ("aarch64-linux-gnu-gcc",), "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        ),
        Tool("qemu-aarch64", ("qemu-aarch64",), "qemu-user"),
        Tool(
            "arm-linux-gnueabihf-gcc",
            ("arm-linux-gnueabihf-gcc",),
            "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
        ),
        Tool("qemu-arm", ("qemu-arm",), "qemu-user"),
        Tool("chromium", ("chromium", "chromium-browser", "google-chrome"), "chromium"),
        Tool("fashion-mnist", ("/usr/share/datasets/fashion-mnist",), "dataset-fashion-mnist"),
    )
}

MARKED = {
    "host_compiler": ("cc",),
    "emulator": ("qemu-system-arm", "arm-none-eabi-gcc"),
}


def missing(names: Iterable[str]) -> list[str]:
    """Return one line for each tool of `names` that this machine lacks; KeyError if not in `TOOLS`."""
    return [TOOLS[name].complaint() for name in dict.fromkeys(names) if not TOOLS[name].present()]
