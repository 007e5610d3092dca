"""A compiler for on-device training: adapts a trained network on Arm microcontrollers and processors.

Names are loaded when first used: ``import tvm_tinytrain`` alone imports neither TVM nor PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from tvm_tinytrain._version import __version__

if TYPE_CHECKING:
    from tvm_tinytrain import micro, models
    from tvm_tinytrain.build import TrainModule, build, load
    from tvm_tinytrain.config import (
        MSE,
        SGD,
        Adam,
        AdamW,
        AdapterDrop,
        BiasOnly,
        BinaryCrossEntropy,
        Budget,
        CrossEntropy,
        FullTrain,
        LastLayer,
        MemoryOptions,
        Prototypical,
        SparseUpdate,
        TinyTL,
    )
    from tvm_tinytrain.errors import TinyTrainError
    from tvm_tinytrain.pipeline import Instruments
    from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
    from tvm_tinytrain.selection import TaskAdaptive
    from tvm_tinytrain.tuning import tune

_HOME = {
    "build": "build",
    "TrainModule": "build",
    "load": "build",
    "tune": "tuning",
    "Instruments": "pipeline",
    "TinyTrainError": "errors",
    "LayerUpdate": "plan",
    "UpdatePlan": "plan",
    **dict.fromkeys(
        (
            "MSE",
            "SGD",
            "Adam",
            "AdamW",
            "BinaryCrossEntropy",
            "Budget",
            "CrossEntropy",
            "FullTrain",
            "LastLayer",
            "MemoryOptions",
            "BiasOnly",
            "Prototypical",
            "SparseUpdate",
            "TinyTL",
            "AdapterDrop",
        ),
        "config",
    ),
    "TaskAdaptive": "selection",
}
_SUBPACKAGES = ("micro", "models")

__all__ = [
    "MSE",
    "SGD",
    "Adam",
    "AdamW",
    "AdapterDrop",
    "BiasOnly",
    "BinaryCrossEntropy",
    "Budget",
    "CrossEntropy",
    "FullTrain",
    "Instruments",
    "LastLayer",
    "LayerUpdate",
    "MemoryOptions",
    "Prototypical",
    "SparseUpdate",
    "TaskAdaptive",
    "TinyTL",
    "TinyTrainError",
    "TrainModule",
    "UpdatePlan",
    "__version__",
    "build",
    "load",
    "micro",
    "models",
    "tune",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of the package's

    def __getattr__(name: str) -> object:
        if name in _SUBPACKAGES:
            return importlib.import_module(f"tvm_tinytrain.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'tvm_tinytrain' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"tvm_tinytrain.{_HOME[name]}"), name)
        globals()[name] = value
        return value


class _Package(ModuleType):
    """Keeps the submodule ``build`` from taking the place of the function of that name, whoever imports it first."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
