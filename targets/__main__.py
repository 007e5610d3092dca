"""``python -m tvm_tinytrain.targets --cmake-dir``: where the CMake package is."""

from __future__ import annotations

import argparse
import sys

from tvm_tinytrain.targets.cmake_boards import cmake_folder
from tvm_tinytrain.targets.runtime_files import runtime_folder


def main() -> int:
    """Print the folders that a build system asks for."""
    parser = argparse.ArgumentParser(prog="python -m tvm_tinytrain.targets", description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--cmake-dir", action="store_true", help="folder of tvm_tinytrain-config.cmake")
    choice.add_argument("--runtime-dir", action="store_true", help="folder of the C runtime's sources")
    asked = parser.parse_args()
    sys.stdout.write(f"{cmake_folder() if asked.cmake_dir else runtime_folder()}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
