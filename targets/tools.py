"""Programs that are started, and how a user gets those that are missing."""

from __future__ import annotations

import shutil

from tvm_tinytrain.errors import ToolMissingError

# program -> Debian packages that bring it and what it needs beside it
_PACKAGES: dict[str, str] = {
    "gcc": "gcc libc6-dev",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-aarch64": "qemu-user",
    "qemu-arm": "qemu-user",
    "openocd": "openocd",
    "ssh": "openssh-client",
    "scp": "openssh-client",
}


def find_tool(name: str, stage: str) -> str:
    """Return the path of program `name`.

    Raises
    ------
    ToolMissingError
        It is not on the PATH; the hint is the line that installs its Debian package.
    """
    path = shutil.which(name)
    if path is None:
        raise ToolMissingError(
            stage, name, "no such program on the PATH", "an installed program", how_to_get(name)
        )
    return path


def how_to_get(name: str) -> str:
    """Return the line that installs program `name` on Debian."""
    return f"run: sudo apt-get install -y --no-install-recommends {_PACKAGES.get(name, name)}"


def missing_tools(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `names` that are not on the PATH, in the same order."""
    return tuple(name for name in names if shutil.which(name) is None)
