"""What TVM builds for this machine, linked into a library before it runs.

TVM's just-in-time linker takes some 50 ms for every function, the compiler's linker as long for all of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm
from tvm import relax
from tvm.support.cc import get_cc

FAST = tvm.target.Target({"kind": "llvm", "opt-level": 0})
"""Builds six times as fast; what tests run is short."""


def linked(executable: tvm.runtime.Executable) -> tvm.runtime.Module:
    """The built module from a library of its own; by the just-in-time linker on a machine without a C compiler."""
    if get_cc() is None:
        return executable.jit()
    with tempfile.TemporaryDirectory(prefix="tinytrain-tests-") as folder:
        path = Path(folder) / "built.so"
        executable.export_library(str(path))
        return tvm.runtime.load_module(str(path))


def virtual_machine(mod: tvm.IRModule) -> relax.VirtualMachine:
    """Relax's virtual machine for a module, quickly built."""
    return relax.VirtualMachine(linked(relax.build(relax.transform.LegalizeOps()(mod), FAST)), tvm.cpu())
