"""Runs imported modules on the Relax virtual machine, the oracle's side of all tests here."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from tvm import relax

FAST_BUILD = tvm.target.Target(
    {"kind": "llvm", "opt-level": 0}
)  # builds six times as fast; these runs are short


def run(mod: tvm.IRModule, *inputs: np.ndarray | torch.Tensor) -> np.ndarray | list[np.ndarray]:
    """``main`` of an imported module on its inputs, with the parameters' values of ``tt.values``."""
    built = relax.build(relax.transform.LegalizeOps()(mod), FAST_BUILD)
    vm = relax.VirtualMachine(built, tvm.cpu())
    arrays = [tvm.runtime.tensor(np.asarray(x)) for x in inputs]
    values = mod.attrs["tt.values"]
    params = mod["main"].params[int(mod["main"].attrs["num_input"]) :]
    out = vm["main"](*arrays, *[values[p.name] for p in params])
    return out.numpy() if isinstance(out, tvm.runtime.Tensor) else [o.numpy() for o in out]
