"""A task-adaptive library on a board: potentials and budgets in, its own plan out, with what that took."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.device_select import option_words
from tvm_tinytrain.build import TrainModule
from tvm_tinytrain.micro import Session
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import Budgets, FisherMap, TableAccounting, TaskAdaptive


@dataclass(frozen=True)
class BoardRun:
    """A selection on the board. instructions: of the entry "select" (score, select, install).
    high_water_bytes: of the arena, after one sample was trained with the plan."""

    plan: UpdatePlan
    instructions: int
    high_water_bytes: int


class BoardSelect:
    """Runs the library; a context manager."""

    def __init__(self, module: TrainModule, tables: TableAccounting, board: str) -> None:
        self._tables = tables
        self._session = Session(module, board)

    def __enter__(self) -> Self:
        self._session.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def fisher_instructions(self) -> int:
        """Instructions of the Fisher pass over one sample."""
        self._session.call("fisher_begin")
        self._sample()
        return self._session.time("fisher")

    def select(self, fisher: FisherMap, budgets: Budgets, options: TaskAdaptive) -> BoardRun:
        """Start anew, select from these potentials, train one sample if the plan is not empty."""
        session = self._session
        session.reset()
        session.call("fisher_begin")  # what stands in the potentials counts from here on
        session.write("options", np.array(option_words(budgets, options), np.uint32).view(np.int32))
        for layer in self._tables.layers:
            session.write(f"delta_{layer}", fisher[layer])
        instructions = session.time("select")
        plan = self._tables.plan(np.asarray(session.read("request")).tobytes())
        if plan.layers:
            self._sample()
            session.call("accumulate")
            session.call("apply")
        return BoardRun(plan, instructions, session.memory()["arena_high_water_bytes"])

    def _sample(self) -> None:
        """Write an image and a label."""
        session = self._session
        rng = np.random.default_rng(0)
        for name, tensor in session.tensors.items():
            if tensor.role == "input":
                session.write(name, rng.random(tensor.shape, np.float32))
            elif tensor.role == "label":
                session.write(name, np.zeros(tensor.shape, tensor.dtype))
