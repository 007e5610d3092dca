"""A session with a library on a board: build, flash, connect, then tensors and entries by name."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_tinytrain.adaptation import AdaptResult, LearnResult, adapt, learn
from tvm_tinytrain.errors import BoardError, PlanError, TransportError
from tvm_tinytrain.micro.build_folder import build_folder
from tvm_tinytrain.micro.checkpoint import CheckpointLayout, read_checkpoint, write_checkpoint
from tvm_tinytrain.micro.project import GeneratedProject, Library, check_library, generate_project
from tvm_tinytrain.micro.protocol import BoardInfo, Link, LinkStatistics, read_info
from tvm_tinytrain.micro.remote import RemoteLibrary, TensorInfo, array_for
from tvm_tinytrain.micro.runners import Connection, StartOptions, check_port
from tvm_tinytrain.micro.trained_rows import put_checkpoint, read_rows, take_checkpoint
from tvm_tinytrain.targets.boards import DEFAULT_BOARD, Board, get_board, rpc_board
from tvm_tinytrain.values import is_number

_LOG = logging.getLogger(__name__)
_START_S = 20.0
_DEFAULT_CALL_S = 120.0
_SLOWEST_INSTRUCTIONS_PER_SECOND = 2e6
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _alone(method: _Method) -> _Method:
    """A call that no call of another thread comes between: its requests belong together."""

    @functools.wraps(method)
    def alone(self: Session, *args: Any, **options: Any) -> Any:
        with self._lock:
            return method(self, *args, **options)

    return cast(_Method, alone)


class Session:
    """Builds a library for a board, starts it there, and drives it; a context manager.

    Calls of several threads run one after the other, each as a whole; `close` does not wait, and ends the one that runs.

    Parameters
    ----------
    module
        A `TrainModule`, or anything with ``name``, ``files`` and ``metadata``; or a built `GeneratedProject`.
    board
        A board's name or a `Board`; the default is an emulated Cortex-M7. Ignored with a project.
    build_dir
        Folder to build in; None: one that is removed as soon as the board runs.
    timeout_s
        Seconds that one call of an entry may take; None: in proportion to the library's work where its
        metadata says it, else 120 s.
    by_function
        Count instructions by function too; see `function_instructions`.
    port
        Where a real board is: a serial device, or a Linux board's ``[user@]host``, ``host:port``, or
        ``rpc://host:port`` (TVM's RPC server; ``rpc://tracker:port/key`` asks a tracker for one). BoardError for
        one on an emulated board, or on this machine where it is not TVM's RPC server.
    start_s
        Seconds until the board's program answers; one that adapts by itself first needs more than the default.

    Examples
    --------
    >>> with Session(module, board="host") as session:  # doctest: +SKIP
    ...     loss = session.step(image, label)
    """

    def __init__(
        self,
        module: Library | GeneratedProject,
        board: str | Board = DEFAULT_BOARD,
        build_dir: str | Path | None = None,
        timeout_s: float | None = None,
        *,
        by_function: bool = False,
        port: str | None = None,
        start_s: float = _START_S,
    ) -> None:
        check_library(module, "session")
        self._module = module
        self._lock = threading.RLock()
        self.board = module.board if isinstance(module, GeneratedProject) else get_board(board)
        if isinstance(port, str) and port.startswith("rpc://") and self.board.runner != "rpc":
            if isinstance(module, GeneratedProject):
                hint = (
                    "open the session with the module, or generate_project(module, rpc_board(board), folder)"
                )
                raise BoardError("session", f"port {port}", "a project of another kind", "one for RPC", hint)
            self.board = rpc_board(self.board)
        check_port(self.board, port)
        self._build_dir = Path(build_dir) if build_dir is not None else None
        self._call_s = timeout_s if timeout_s is not None else _call_seconds(module)
        self._start_s = start_s
        for name, seconds in (("timeout_s", self._call_s), ("start_s", start_s)):
            if not (is_number(seconds) and seconds > 0.0):
                hint = "leave it out for the default"
                raise PlanError("session", name, repr(seconds), "seconds, more than 0", hint)
        self._start_options = StartOptions(by_function=by_function, port=port)
        self._connection: Connection | None = None
        self._project: GeneratedProject | None = None
        self._remote: RemoteLibrary | None = None
        self._link: Link | None = None

    @_alone
    def open(self) -> Session:
        """Build, flash, start and connect; `with` does it.

        Raises
        ------
        ToolMissingError, BoardError
            A tool is missing, or the program does not build or fit.
        TransportError
            The board does not answer.
        """
        if self._connection is not None:
            return self
        with contextlib.ExitStack() as stack:
            self._project = self._built(stack)
            connection = self._project.flash(self._start_options).open_transport(self._start_options)
            self._connection = connection
            self._finalizer = weakref.finalize(self, connection.close)
            try:
                self._link = Link(connection.transport, self.board.name)
                self._link.connect(self._start_s)
                self._remote = RemoteLibrary(self._link, read_info(self._link, _START_S))
            except BaseException:
                self.close()
                raise
        return self

    def _built(self, stack: contextlib.ExitStack) -> GeneratedProject:
        if isinstance(self._module, GeneratedProject):
            return self._module
        folder = self._build_dir or stack.enter_context(build_folder())
        project = generate_project(self._module, self.board, folder).build()
        if project.arena_is_external:
            _LOG.warning(
                "%s: the arena does not fit SRAM and lies in %s", self.board.name, project.arena_memory
            )
        return project

    def close(self) -> None:
        """End the board's program and release everything; a second call does nothing."""
        if self._connection is not None:
            self._finalizer()
            self._connection = None
            self._remote = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def remote(self) -> RemoteLibrary:
        """The library on the board; TransportError when the session is not open."""
        if self._remote is None:
            hint = "use it inside of `with Session(...) as session:`"
            raise TransportError("session", self.board.name, "not open", "an open session", hint)
        return self._remote

    @property
    def info(self) -> BoardInfo:
        """What the board says of its program."""
        return self.remote.info

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The library's tensors by name: role, dtype, shape."""
        return self.remote.tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the library's build says of it: ``metadata.json``."""
        metadata: Mapping[str, Any] = self._module.metadata
        return metadata

    @property
    def entries(self) -> tuple[str, ...]:
        """The library's entries: "init", "step", "predict", ..."""
        return self.remote.entries

    @property
    def project(self) -> GeneratedProject:
        """The project that runs; its folder is gone when the session made it itself."""
        if self._project is None:
            raise BoardError("session", self.board.name, "not built", "an open session", "open it first")
        return self._project

    @property
    def link_statistics(self) -> LinkStatistics:
        """What went wrong between host and board and was repaired."""
        if self._link is None:
            return LinkStatistics(0, 0, 0)
        return self._link.statistics

    def console(self) -> list[str]:
        """Return the last lines of the board's console."""
        return self._link.console() if self._link is not None else []

    @_alone
    def read(self, name: str) -> NDArray[np.generic]:
        """Return a copy of a tensor; ShapeError when there is none of that name."""
        return self.remote.read(name)

    @_alone
    def write(self, name: str, array: ArrayLike) -> None:
        """Write a tensor.

        Raises
        ------
        ShapeError, DTypeError
            No such tensor, one in flash, or an array of another shape or dtype; nothing is written.
        """
        self.remote.write(name, np.asarray(array))

    @_alone
    def call(self, entry: str) -> None:
        """Run an entry and wait for its end.

        Raises
        ------
        TransportError
            It returned an error, crashed, or did not end in time; the board's last words are in the text.
        """
        self.remote.call(entry, 1, self._call_s)

    @_alone
    def step(self, x: ArrayLike, label: ArrayLike) -> float:
        """Run one training step on one sample and return its loss.

        `x` has the shape of the input, with or without the leading batch axis of one.
        """
        self._write_role("input", x)
        self._write_role("label", label)
        self.call("step")
        return float(self.read(self.remote.only("loss").name).reshape(-1)[0])

    @_alone
    def predict(self, x: ArrayLike) -> NDArray[np.generic]:
        """Run inference on one sample and return the output tensor."""
        self._write_role("input", x)
        self.call("predict")
        return self.read(self.remote.only("output").name)

    @_alone
    def adapt(self, support_images: ArrayLike, support_labels: ArrayLike, **options: Any) -> AdaptResult:
        """Adapt to a labelled support set, driven from here.

        support_images: [n, *shape of one sample], in the input's dtype; support_labels: integers[n]. Options (iterations, lr,
        loss, queries, queries_per_iteration, plan, fisher_through_prototypes, seed, progress) and errors:
        `tvm_tinytrain.adaptation.adapt`. The result's ``classify(session, images)`` then classifies.
        """
        return adapt(self, support_images, support_labels, **options)

    @_alone
    def learn(self, images: ArrayLike, labels: ArrayLike, **options: Any) -> LearnResult:
        """Train on labelled samples by the library's own loss, driven from here: `tvm_tinytrain.adaptation.learn`.

        labels: integers[n] for cross-entropy, else the values that the output should have, [n, *shape of the output].
        """
        return learn(self, images, labels, **options)

    @_alone
    def trained_rows(self) -> dict[str, NDArray[np.float32]]:
        """Return {weight or bias: float32[trained channels, values of a row]} of a task-adaptive library."""
        return read_rows(self, self._module.metadata)

    @_alone
    def save(self, path: str | Path) -> Path:
        """Write what a task-adaptive library has trained to a checkpoint file (``.tt``); returns its path.

        Raises CheckpointError where nothing is trained, or the file cannot be written.
        """
        return write_checkpoint(path, take_checkpoint(self, self._module.metadata))

    @_alone
    def load(self, path: str | Path) -> None:
        """Install a checkpoint file's plan and rows.

        Raises CheckpointError, before the board is changed, where it is damaged or another library's.
        """
        layout = CheckpointLayout.from_metadata(self._module.metadata)
        put_checkpoint(self, self._module.metadata, read_checkpoint(path, layout))

    @_alone
    def read_arena(self, offset: int, count: int) -> bytes:
        """Return bytes of the arena; TransportError where they are not in it."""
        return self.remote.read_arena(offset, count)

    @_alone
    def write_arena(self, offset: int, data: bytes) -> None:
        """Write bytes into the arena; TransportError where they do not lie in it."""
        self.remote.write_arena(offset, data)

    def _write_role(self, role: str, value: ArrayLike) -> None:
        tensor = self.remote.only(role)
        self.remote.write(tensor.name, array_for(tensor, value, "session"))

    @_alone
    def time(self, entry: str) -> int:
        """Run an entry once and return what it took, in `time_unit`: exact instructions on an emulator."""
        ticks = self.remote.call(entry, 1, self._call_s)
        counter = self._connection.counter if self._connection is not None else None
        return counter.read()[0] if counter is not None else ticks

    @property
    def time_unit(self) -> str:
        """The unit of `time`: "instructions" on an emulator, "nanoseconds" on this machine, else "cycles"."""
        if self._connection is not None and self._connection.counter is not None:
            return "instructions"
        return "nanoseconds" if self.info.ticks_per_second == 1_000_000_000 else "cycles"

    @_alone
    def function_instructions(self) -> dict[str, int]:
        """Return the instructions of each function in the last call; needs ``by_function=True``."""
        counter = self._connection.counter if self._connection is not None else None
        if counter is None or not self._start_options.by_function:
            hint = "open the session with by_function=True on an emulated board"
            raise BoardError("session", self.board.name, "no counts by function", "by_function=True", hint)
        return counter.read()[1]

    @_alone
    def instruction_log(self) -> list[tuple[int, int]]:
        """Return for every call of an entry since the start the instructions before it and in it; emulated boards only."""
        counter = self._connection.counter if self._connection is not None else None
        if counter is None:
            hint = "take an emulated board"
            raise BoardError("session", self.board.name, "no counts", "an emulated board", hint)
        return counter.log()

    @_alone
    def memory(self) -> dict[str, int]:
        """Return measured and linked bytes.

        stack_bytes: the most that was ever used; stack_limit_bytes: what there is; arena_bytes: planned;
        arena_high_water_bytes: up to the last byte that was written, arena_touched_bytes: how many were
        written, both since the last `reset`; sram_bytes_linked, external_bytes_linked (arena included where
        it lies), flash_bytes: of the linked program.
        """
        limit, stack, high_water, touched = self.remote.memory()
        sizes = self.project.sizes()
        return {
            "stack_bytes": stack,
            "stack_limit_bytes": limit,
            "arena_bytes": self.info.arena_bytes,
            "arena_high_water_bytes": high_water,
            "arena_touched_bytes": touched,
            "sram_bytes_linked": sizes.sram_bytes,
            "external_bytes_linked": sizes.external_bytes,
            "flash_bytes": sizes.flash_bytes,
        }

    @_alone
    def reset(self) -> None:
        """Paint the arena and the free stack, and call "init": everything that was learnt is gone."""
        self.remote.reset(self._call_s)


def _call_seconds(module: Library | GeneratedProject) -> float:
    """Return a time limit for one call, far above what the slowest emulator needs for the library's work."""
    macs = module.metadata.get("macs")
    most = max(macs.values(), default=0) if isinstance(macs, Mapping) else macs
    if not isinstance(most, int | float) or isinstance(most, bool) or most <= 0:
        return _DEFAULT_CALL_S
    return 20.0 + 8 * float(most) / _SLOWEST_INSTRUCTIONS_PER_SECOND
