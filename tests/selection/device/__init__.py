"""The C of the selection as a process, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_tinytrain.selection import (
    Budgets,
    FisherMap,
    Selection,
    TableAccounting,
    TaskAdaptive,
    select,
)
from tvm_tinytrain.targets.runtime_files import runtime_folder

HERE = Path(__file__).parent
CRITERIA = ("tinytrain", "fisher", "fisher/memory", "fisher/compute", "l2", "random", "exact")
OK, BAD_VALUE, ARENA_SMALL, BUDGET = 0, -4, -2, -11
UINT32_MAX, UINT64_MAX = (1 << 32) - 1, (1 << 64) - 1
FLAGS = ("-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
_REPLY = struct.Struct("<i4Q3I")


def compile_driver(source: Path, program: Path, *, headers: Sequence[Path] = ()) -> Path:
    """Compile a driver with all C of targets/runtime/adapt, with sanitizers."""
    runtime = runtime_folder()
    sources = [source, *sorted((runtime / "adapt").glob("*.c"))]
    includes = [f"-I{folder}" for folder in (runtime / "include", runtime / "adapt", *headers)]
    command = ["gcc", *FLAGS, *SANITIZERS, *includes, *map(str, sources), "-o", str(program), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


@dataclass(frozen=True)
class Answer:
    """What tt_select gave back. untouched: bit map and result still hold what they held before."""

    status: int
    captured: int
    available: int
    memory_bytes: int
    macs: int
    proven: bool
    untouched: bool
    bitmap: bytes


class Device:
    """One driver process; `select` asks it, `same` compares it with the host."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def select(
        self,
        tables: TableAccounting,
        budgets: Budgets,
        potentials: Sequence[np.ndarray],
        options: TaskAdaptive | None = None,
        *,
        exhaustive_limit: int = 1 << 14,
        missing_scratch: int = 0,
        skew: int = 0,
        **raw: int,
    ) -> Answer:
        """Ask the process; `raw` replaces words of the request by their name."""
        options = options or TaskAdaptive()
        memory = UINT32_MAX if budgets.memory_bytes is None else min(budgets.memory_bytes, UINT32_MAX)
        macs = UINT64_MAX if budgets.macs is None else budgets.macs
        values = np.concatenate([np.asarray(p, np.float32) for p in potentials] or [np.zeros(0, np.float32)])
        words = {
            "candidates": len(tables.candidates),
            "links": len(tables.links),
            "criterion": CRITERIA.index(options.criterion),
            "overflow": ("skip", "stop").index(options.overflow),
            "numerator": options.channel_ratio.numerator,
            "denominator": options.channel_ratio.denominator,
            "memory": memory,
            "macs_low": macs & UINT32_MAX,
            "macs_high": macs >> 32,
            "seed_low": options.seed & UINT32_MAX,
            "seed_high": options.seed >> 32 & UINT32_MAX,
            "exhaustive_limit": exhaustive_limit,
            "missing_scratch": missing_scratch,
            "skew": skew,
            "potentials": values.size,
        }
        body = [v for c in tables.candidates for v in _words(c)]
        body += tables.activation_bytes
        for link in tables.links:
            body += [link.needed & UINT32_MAX, link.needed >> 32, link.macs]
        request = np.array([*(words | raw).values(), *body], np.uint32).tobytes() + values.tobytes()
        return self._ask(request)

    def _ask(self, request: bytes) -> Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(request)
        stdin.flush()
        head = stdout.read(_REPLY.size)
        assert len(head) == _REPLY.size, "the driver died: see the sanitizer's report on stderr"
        status, captured, available, memory, macs, proven, untouched, size = _REPLY.unpack(head)
        bitmap = stdout.read(size)
        return Answer(status, captured, available, memory, macs, bool(proven), bool(untouched), bitmap)

    def same(
        self,
        tables: TableAccounting,
        budgets: Budgets,
        fisher: FisherMap | None,
        options: TaskAdaptive,
        *,
        skew: int = 0,
    ) -> Selection:
        """Select on both sides and compare everything; returns the host's answer."""
        host = select(tables, budgets, fisher, options)
        potentials = [] if fisher is None else [fisher[layer] for layer in tables.layers]
        answer = self.select(tables, budgets, potentials, options, skew=skew)
        assert answer.status == OK
        assert tables.plan(answer.bitmap) == host.plan
        assert tables.bitmap(host.plan) == answer.bitmap
        found = (answer.captured, answer.available, answer.memory_bytes, answer.macs, answer.proven)
        assert found == (host.captured, host.available, host.memory_bytes, host.macs, host.proven)
        return host

    def close(self) -> int:
        """End the process; returns its exit code, which a sanitizer makes non-zero."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(20)


def _words(c: object) -> list[int]:
    names = ("layer", "channels", "weights", "forward_macs", "channel_bytes", "channel_macs")
    return [getattr(c, name) for name in names]
