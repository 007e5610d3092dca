"""Runs imported modules on the Relax virtual machine, the oracle's side of all tests here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tvm

from tests.native import virtual_machine
from tvm_tinytrain.passes.state import get_values


def run(mod: tvm.IRModule, *inputs: np.ndarray | torch.Tensor) -> Any:
    """``main`` of an imported module on its inputs, with its parameters' values."""
    return Batch({"main": lambda: mod}).run("main", *inputs)


class Batch:
    """Many imported modules in one build, which costs less than a build for each.

    An import that raises does so when its case runs.
    """

    def __init__(self, cases: dict[str, Callable[[], tvm.IRModule]]) -> None:
        self.modules: dict[str, tvm.IRModule | Exception] = {}
        functions = {}
        for name, load in cases.items():
            try:
                mod = self.modules[name] = load()
                symbol = "f" + "".join(c if c.isalnum() else "_" for c in name)
                functions[symbol] = mod["main"].with_attr("global_symbol", symbol)
            except Exception as error:
                self.modules[name] = error
        self.vm = virtual_machine(tvm.IRModule(functions))

    def module(self, name: str) -> tvm.IRModule:
        """The imported module of a case."""
        mod = self.modules[name]
        if isinstance(mod, Exception):
            raise mod
        return mod

    def run(self, name: str, *inputs: np.ndarray | torch.Tensor) -> Any:
        """The result of a case on its inputs."""
        mod = self.module(name)
        values = get_values(mod)
        params = mod["main"].params[int(mod["main"].attrs["num_input"]) :]
        arrays = [np.asarray(x) for x in inputs] + [values[p.name] for p in params]
        out = self.vm["f" + "".join(c if c.isalnum() else "_" for c in name)](
            *[tvm.runtime.tensor(a) for a in arrays]
        )
        return out.numpy()
