"""Measures candidates of one kernel on a board: one firmware image carries all of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tvm import tirx

from tvm_tinytrain.emit.kernel_set import KernelSet, emit_kernel_set
from tvm_tinytrain.errors import BoardError, KernelError, TinyTrainError, TransportError
from tvm_tinytrain.micro.build_folder import build_folder
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.project import GeneratedProject, Library, generate_project
from tvm_tinytrain.micro.session import Session
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.lower_kernels import lower_kernel
from tvm_tinytrain.schedules.journal import Outcome
from tvm_tinytrain.targets.boards import Board

TOLERANCE = 1e-5
"""Largest difference from the kernel as written, relative to its largest value or 1."""
CALL_S = 60.0
"""Seconds after which a candidate has failed."""
ROOM = 1 << 18
"""The arena's size in an image is a multiple of it, so that most batches find the board's runtime compiled."""
LONG_FRAMES = 16 << 10
"""Bytes of a frame to an emulated board, where only the number of frames takes time."""
_LIBRARY = "candidates"


@dataclass(frozen=True)
class Problem:
    """What every candidate of a kernel is given, and what it must give.

    ``names`` of the kernel's arguments, their ``values`` before the call, what is ``expected`` in them after it, and whether the
    kernel has ``written`` them; ``call_s``: seconds for one call.
    """

    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    written: tuple[bool, ...]
    call_s: float = CALL_S

    @staticmethod
    def of(
        func: tirx.PrimFunc, board: Board, seed: int, call_s: float = CALL_S, folder: Path | None = None
    ) -> Problem:
        """Random arguments, and what the kernel as written makes of them on this machine; it is compiled in ``folder``."""
        library = emit_kernel_set(_LIBRARY, {"k": lower_kernel(func, board.target.to_tvm())}, minmax=False)
        arguments = library.arguments["k"]
        values = random_arguments(library, func, seed)
        with InProcess(library, build_dir=folder) as host:
            for arg, value in zip(arguments, values, strict=True):
                host.write(arg.tensor, value)
            host.call("k")
            expected = tuple(host.read(a.tensor) for a in arguments)
        names = tuple(a.tensor.removeprefix("k_") for a in arguments)
        return Problem(names, tuple(values), expected, tuple(a.role != "in" for a in arguments), call_s)

    def measure(
        self,
        library: Library,
        names: Sequence[str],
        board: Board,
        port: str | None = None,
        folder: Path | None = None,
    ) -> dict[str, Outcome]:
        """Builds one image for all entries ``names`` of a library and starts it as often as candidates bring it down.

        What is in ``folder`` from an earlier image and has not changed is not compiled again. A candidate is blamed for the end of
        its program only when the board starts again after it. Where it does not, the outcomes found so far are returned, or if there
        are none:

        Raises
        ------
        ImageError
            The image does not build or fit.
        ToolMissingError, BoardError, TransportError
            The board cannot be reached, or does not start.
        """
        found: dict[str, Outcome] = {}
        suspect: dict[str, Outcome] = {}
        failures = 0
        with ExitStack() as stack:
            place = folder or stack.enter_context(build_folder())
            stack.callback(_forget_candidates, place)
            project = _image(library, board, place)
            while len(found) < len(names):
                waiting = [n for n in names if n not in found and n not in suspect]
                try:
                    with Session(project, timeout_s=self.call_s, port=port) as session:
                        found |= suspect
                        suspect = {}
                        there: set[str] = set()
                        for name in waiting:
                            self._write(session, name, there)
                            failures = 0
                            try:
                                found[name] = self._run(session, name, there)
                            except TransportError as error:  # a fault or a time-out: this program is gone
                                suspect = {name: Outcome(None, str(error)[:500])}
                                break
                except (BoardError, TransportError):  # the board did not start, or not again
                    failures += 1
                    if failures == 2:
                        if found:
                            return found
                        raise
        return found

    def _write(self, session: Session, name: str, there: set[str]) -> None:
        """``there``: arguments whose values are in the arena, which is the same for all candidates."""
        for argument, value in zip(self.names, self.values, strict=True):
            if argument not in there:
                session.write(f"{name}_{argument}", value)
        there.clear()

    def _run(self, session: Session, name: str, there: set[str]) -> Outcome:
        """Calls a candidate and checks its results; adds to ``there`` what it left as it was."""
        cost = session.time(name)
        failure = ""
        for argument, want, written in zip(self.names, self.expected, self.written, strict=True):
            have = np.asarray(session.read(f"{name}_{argument}"))
            if not written and np.array_equal(have, want):
                there.add(argument)
                continue
            limit = TOLERANCE * max(1.0, float(np.abs(want).max(initial=0.0))) if written else 0.0
            error = float(np.abs(have.astype(np.float64) - want).max(initial=0.0))
            if not error <= limit and not failure:
                failure = f"{argument} is off by {error:.1e}"
        return Outcome(None, failure) if failure else Outcome(float(cost))


class ImageError(BoardError):
    """An image of candidates does not build, or does not fit its board."""


def _image(library: Library, board: Board, folder: Path) -> GeneratedProject:
    project = generate_project(_with_room(library), _for_batches(board), folder)
    try:
        return project.build()
    except BoardError as error:
        raise ImageError(error.stage, error.thing, error.found, error.allowed, error.hint) from error


def _with_room(library: Library) -> Library:
    size = library.metadata["memory"]["arena_bytes"]
    memory = {"arena_bytes": -(-size // ROOM) * ROOM}
    return KernelSet(library.name, dict(library.files), {**library.metadata, "memory": memory}, {})


def _for_batches(board: Board) -> Board:
    return replace(board, frame_payload_bytes=LONG_FRAMES) if board.is_emulated else board


def _forget_candidates(folder: Path) -> None:
    for path in (folder / "build" / "objects").glob(f"tt_{_LIBRARY}*"):
        path.unlink()


class BoardMeasure:
    """Candidates → outcomes, for the kernel ``func`` on ``board``.

    A result that differs from the kernel as written, a fault, a time-out and an image that does not fit are failed candidates; the
    others of the batch are still measured. What no candidate can be blamed for is raised: a tool that is missing, a board that is not
    there. ``folder``: where images are built; others for the same board may have used it before.
    """

    def __init__(
        self,
        func: tirx.PrimFunc,
        board: Board,
        seed: int = 0,
        *,
        port: str | None = None,
        call_s: float = CALL_S,
        folder: Path | None = None,
    ) -> None:
        self.board, self.port, self.folder = board, port, folder
        self._func, self._seed, self._call_s = func, seed, call_s

    @cached_property
    def problem(self) -> Problem:
        """Made when the first candidate is measured: a search that goes on from its journal may measure none."""
        return Problem.of(self._func, self.board, self._seed, self._call_s, self.folder)

    def __call__(self, kernels: Mapping[str, tirx.PrimFunc]) -> dict[str, Outcome]:
        """Outcomes by name, of one candidate at least; see `Problem.measure` for what it raises."""
        if not kernels:
            return {}
        assert self.problem.names  # made here: what it raises is no candidate's fault
        minmax = "minmax" in self.board.target.core.features
        try:
            library = emit_kernel_set(_LIBRARY, kernels, minmax=minmax)
        except KernelError as error:
            return self._halved(kernels, error)
        try:
            return self.measure(library, list(kernels))
        except ImageError as error:
            return self._halved(kernels, error)

    def _halved(self, kernels: Mapping[str, tirx.PrimFunc], error: TinyTrainError) -> dict[str, Outcome]:
        """Finds out which candidates cannot be emitted, do not compile or fit."""
        names = list(kernels)
        if len(names) == 1:
            return {names[0]: Outcome(None, str(error)[:500])}
        half = len(names) // 2
        return self({n: kernels[n] for n in names[:half]}) | self({n: kernels[n] for n in names[half:]})

    def measure(self, library: KernelSet, names: list[str]) -> dict[str, Outcome]:
        """Outcomes of one image's entries."""
        return self.problem.measure(library, names, self.board, self.port, self.folder)


def random_arguments(library: KernelSet, func: tirx.PrimFunc, seed: int) -> list[np.ndarray]:
    """Values for all arguments of the library's only kernel; lists of channels ascend."""
    rng = np.random.default_rng(seed)
    spec = kernel_spec(func)
    outputs = spec.get("out_channels") or spec.get("out_features") or spec.get("size", 0)
    inputs = spec.get("in_features") or spec.get("in_channels", 0) // spec.get("groups", 1)
    found = []
    for arg in library.arguments["k"]:
        if arg.dtype == "int32":
            limit = inputs if arg.tensor.endswith("_inputs") else outputs
            found.append(np.sort(rng.permutation(limit)[: arg.shape[0]]).astype(np.int32))
        elif arg.dtype == "uint8":
            found.append(rng.integers(0, 256, arg.shape).astype(np.uint8))
        else:
            found.append(rng.standard_normal(arg.shape).astype(arg.dtype))
    return found
