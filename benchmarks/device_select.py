"""The selection of a task-adaptive library, compiled for this machine and called inside of this process.

The C is the one that a library carries (``targets/runtime/adapt``); the tables are given when it is called,
so that one compilation serves all networks.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_tinytrain.errors import KernelError, PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import Budgets, FisherMap, Selection, TableAccounting, TaskAdaptive
from tvm_tinytrain.targets.runtime_files import runtime_folder
from tvm_tinytrain.targets.target import parse_target
from tvm_tinytrain.targets.tools import find_tool

CRITERIA = ("tinytrain", "fisher", "fisher/memory", "fisher/compute", "l2", "random", "exact")
OVERFLOW = ("skip", "stop")
NO_MEMORY_LIMIT, NO_MACS_LIMIT = (1 << 32) - 1, (1 << 64) - 1
EXHAUSTIVE_LIMIT = 1 << 14
_u16, _u32, _u64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class _Candidate(ctypes.Structure):
    _fields_ = (
        ("layer", _u16),
        ("channels", _u16),
        ("weights", _u32),
        ("forward_macs", _u32),
        ("channel_bytes", _u32),
        ("channel_macs", _u32),
    )


class _Link(ctypes.Structure):
    _fields_ = (("needed", _u64), ("macs", _u32))


class _Problem(ctypes.Structure):
    _fields_ = (
        ("num_candidates", _u32),
        ("candidates", ctypes.POINTER(_Candidate)),
        ("activation_bytes", ctypes.POINTER(_u32)),
        ("num_links", _u32),
        ("links", ctypes.POINTER(_Link)),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("criterion", ctypes.c_uint8),
        ("overflow", ctypes.c_uint8),
        ("ratio_numerator", _u16),
        ("ratio_denominator", _u16),
        ("memory_bytes", _u32),
        ("macs", _u64),
        ("seed", _u64),
        ("exhaustive_limit", _u32),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("captured", _u64),
        ("available", _u64),
        ("macs", _u64),
        ("memory_bytes", _u32),
        ("proven", ctypes.c_uint8),
    )


@dataclass(frozen=True)
class Answer:
    """What tt_select said: the plan of its bit map, and its result."""

    plan: UpdatePlan
    captured: int
    available: int
    memory_bytes: int
    macs: int
    proven: bool

    def equals(self, host: Selection) -> bool:
        """Whether the host says the same in everything."""
        return self == Answer(
            host.plan, host.captured, host.available, host.memory_bytes, host.macs, host.proven
        )


class DeviceSelect:
    """tt_select in this process. Raises ToolMissingError without a C compiler, KernelError where it refuses."""

    def __init__(self) -> None:
        runtime = runtime_folder()
        with tempfile.TemporaryDirectory(prefix="tinytrain-") as folder:
            library = Path(folder) / "select.so"
            target = parse_target("host")
            command = [find_tool(target.compiler, "compile"), "-std=c99", "-shared", "-fPIC", *target.cflags]
            command += [f"-I{runtime / 'include'}", "-o", str(library)]
            command += [*sorted(map(str, (runtime / "adapt").glob("*.c"))), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise KernelError("benchmark", "selection's C", done.stderr[-500:], "clean C99", "report it")
            self._library = ctypes.CDLL(str(library))
        self._library.tt_select_scratch_bytes.restype = ctypes.c_size_t

    def select(
        self, tables: TableAccounting, budgets: Budgets, potentials: FisherMap | None, options: TaskAdaptive
    ) -> Answer:
        """Ask for a plan as `selection.select` does; PlanError for a status other than 0."""
        problem = _problem(tables)
        scratch = np.zeros(self._library.tt_select_scratch_bytes(ctypes.byref(problem)), np.uint8)
        bitmap = np.zeros((tables.total_channels + 7) // 8, np.uint8)
        values = None if potentials is None else np.concatenate([potentials[i] for i in tables.layers])
        result = _Result()
        status = self._library.tt_select(
            ctypes.byref(problem),
            ctypes.byref(_options(budgets, options)),
            None if values is None else ctypes.c_void_p(values.ctypes.data),
            ctypes.c_void_p(scratch.ctypes.data),
            ctypes.c_size_t(scratch.size),
            ctypes.c_void_p(bitmap.ctypes.data),
            ctypes.byref(result),
        )
        if status:
            raise PlanError("benchmark", "tt_select", f"status {status}", "0", "see tt_status in tinytrain.h")
        plan = tables.plan(bitmap.tobytes())
        return Answer(
            plan,
            result.captured,
            result.available,
            result.memory_bytes,
            result.macs,
            bool(result.proven),
        )


def _problem(tables: TableAccounting) -> _Problem:
    candidates = [
        _Candidate(c.layer, c.channels, c.weights, c.forward_macs, c.channel_bytes, c.channel_macs)
        for c in tables.candidates
    ]
    links = [_Link(link.needed, link.macs) for link in tables.links]
    return _Problem(
        len(candidates),
        (_Candidate * len(candidates))(*candidates),
        (_u32 * len(tables.activation_bytes))(*tables.activation_bytes),
        len(links),
        (_Link * max(1, len(links)))(*links),
    )


def _options(budgets: Budgets, options: TaskAdaptive) -> _Options:
    return _Options(
        CRITERIA.index(options.criterion),
        OVERFLOW.index(options.overflow),
        options.channel_ratio.numerator,
        options.channel_ratio.denominator,
        NO_MEMORY_LIMIT if budgets.memory_bytes is None else budgets.memory_bytes,
        NO_MACS_LIMIT if budgets.macs is None else budgets.macs,
        options.seed,
        EXHAUSTIVE_LIMIT,
    )


def option_words(budgets: Budgets, options: TaskAdaptive) -> Sequence[int]:
    """The words of a library's tensor ``options``: memory, MACs (low, high), criterion, ratio, overflow, seed
    (low, high), samples that the cache should have room for."""
    made = _options(budgets, options)
    low = (1 << 32) - 1
    ratio = made.ratio_numerator << 16 | made.ratio_denominator
    macs = (made.macs & low, made.macs >> 32)
    return (
        made.memory_bytes,
        *macs,
        made.criterion,
        ratio,
        made.overflow,
        made.seed & low,
        made.seed >> 32,
        options.cached_samples,
    )
