"""A library inside this process: compiled for this machine, loaded, called without a protocol in between.

For what needs many calls and trusts its code: gradient checks, accuracy tables, searches. A library that may crash belongs on the
board ``host``, which is a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation import AdaptResult, LearnResult, adapt, learn
from tvm_tinytrain.errors import (
    DTypeError,
    KernelError,
    PlanError,
    ShapeError,
    ToolMissingError,
    TransportError,
)
from tvm_tinytrain.micro.project import check_library, check_object
from tvm_tinytrain.micro.remote import (
    TensorInfo,
    array_for,
    check_arena,
    check_entry,
    named_tensor,
    only_tensor,
    status_text,
)
from tvm_tinytrain.micro.toolchain import run_compiler
from tvm_tinytrain.targets.boards import get_board
from tvm_tinytrain.targets.target import parse_target

_DTYPES = {"float32": np.float32, "int32": np.int32, "uint8": np.uint8, "int8": np.int8}


class InProcess:
    """Loads a `TrainModule` built for ``host`` (or any C target: the C is the same) into this process.

    Parameters
    ----------
    module
        Anything with ``name``, ``files`` and ``metadata``.
    cflags
        Compiler flags; default those of the target ``host``, so that results agree with a board's to the last bit.
    build_dir
        Folder that keeps the compiled library; a library of the same sources and flags is found there again. None: a folder that is
        removed with this object.

    Raises
    ------
    ArchiveError, PlanError
        `module` is no library; `cflags` is one text.
    BoardError
        Its kernels are compiled already, for another machine.
    ToolMissingError, KernelError
        There is no C compiler, or it does not take the library.
    ArchiveError, TransportError
        The disk is full, or something ended the compiler.
    """

    def __init__(
        self, module: Any, *, cflags: Sequence[str] | None = None, build_dir: str | Path | None = None
    ) -> None:
        check_library(module, "library")
        check_object(module, get_board("host"))
        if isinstance(cflags, str):
            hint = f"e.g. cflags={cflags.split()}"
            raise PlanError("library", "cflags", repr(cflags), "a sequence of flags", hint)
        self.name: str = module.name
        self.metadata: Mapping[str, Any] = module.metadata
        self._tensors = {t["name"]: t for t in module.metadata["tensors"]}
        self.entries: tuple[str, ...] = tuple(module.metadata["entries"])
        self.tensors: Mapping[str, TensorInfo] = {n: _info(t) for n, t in self._tensors.items()}
        if build_dir is not None:
            Path(build_dir).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="tinytrain-", dir=build_dir)
        library = _compile(module, Path(self._folder.name), cflags, build_dir)
        self._library = ctypes.CDLL(str(library))
        size = int(module.metadata["memory"]["arena_bytes"])
        self._memory = np.zeros(size + 64, dtype=np.uint8)
        start = -self._memory.ctypes.data % 64
        self.arena = self._memory[start : start + size]
        self.init()

    def init(self) -> None:
        """Writes the initial parameters into the arena."""
        code = getattr(self._library, f"tt_{self.name}_init")(
            ctypes.c_void_p(self.arena.ctypes.data), ctypes.c_size_t(self.arena.size)
        )
        self._check("init", code)

    def call(self, entry: str) -> None:
        """Runs an entry; raises TransportError if there is none of that name, or with its status if it refuses."""
        check_entry(self.entries, entry, "library")
        self._check(
            entry, getattr(self._library, f"tt_{self.name}_{entry}")(ctypes.c_void_p(self.arena.ctypes.data))
        )

    def view(self, name: str) -> np.ndarray:
        """A tensor of the arena as an array that shares its memory."""
        named_tensor(self.tensors, name, "library")
        t = self._tensors[name]
        if t["offset"] is None:
            raise KernelError(
                "host",
                f"tensor {name}",
                "in flash",
                "tensors of the arena",
                "read the model's parameters instead",
            )
        flat = self.arena[t["offset"] : t["offset"] + t["bytes"]].view(_DTYPES[t["dtype"]])
        return flat.reshape(t["shape"])

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor."""
        return self.view(name).copy()

    def write(self, name: str, value: Any) -> None:
        """Writes a tensor; shape and dtype must match."""
        target, array = self.view(name), np.asarray(value)
        if array.shape != target.shape:
            raise ShapeError("host", f"tensor {name}", array.shape, target.shape, "reshape the array")
        if array.dtype != target.dtype:
            raise DTypeError(
                "host", f"tensor {name}", array.dtype, target.dtype, "convert the array with astype"
            )
        target[...] = array

    def read_arena(self, offset: int, count: int) -> bytes:
        """Bytes of the arena; TransportError where they are not in it."""
        check_arena(self.arena.size, offset, count, "library")
        return self.arena[offset : offset + count].tobytes()

    def write_arena(self, offset: int, data: bytes) -> None:
        """Writes bytes into the arena; TransportError where they do not lie in it."""
        check_arena(self.arena.size, offset, len(data), "library")
        self.arena[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def step(self, x: Any, label: Any, entry: str = "step") -> float:
        """Trains on one sample (or, with ``entry="accumulate"``, adds its gradients); returns the loss."""
        self._write_role("input", x)
        self._write_role("label", label)
        self.call(entry)
        return float(self.read("loss")[0])

    def predict(self, x: Any) -> np.ndarray:
        """The network's output for one sample."""
        self._write_role("input", x)
        self.call("predict")
        return self.read("output")

    def adapt(self, support_images: Any, support_labels: Any, **options: Any) -> AdaptResult:
        """Adapts to a labelled support set by `tvm_tinytrain.adaptation.adapt`, which says what the options are."""
        return adapt(self, support_images, support_labels, **options)

    def learn(self, images: Any, labels: Any, **options: Any) -> LearnResult:
        """Trains on labelled samples by `tvm_tinytrain.adaptation.learn`, which says what the options are."""
        return learn(self, images, labels, **options)

    def classify(self, result: AdaptResult, images: Any) -> npt.NDArray[np.int64]:
        """Labels of images [n, ...] by what `adapt` returned."""
        return result.classify(self, images)

    def close(self) -> None:
        """Removes the compiled library's folder."""
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_role(self, role: str, value: Any) -> None:
        tensor = only_tensor(self.tensors, role, "library")
        self.write(tensor.name, array_for(tensor, value, "library"))

    def _check(self, entry: str, code: int) -> None:
        if code != 0:
            raise TransportError(
                "library", f"entry {entry}", status_text(code), "0", "see tt_status in tinytrain.h"
            )


def _info(t: Mapping[str, Any]) -> TensorInfo:
    in_flash = t["offset"] is None
    dtype = np.dtype(_DTYPES[t["dtype"]])
    return TensorInfo(
        t["name"], t["role"], dtype, tuple(t["shape"]), t["offset"] or 0, int(np.prod(t["shape"])) * dtype.itemsize, in_flash
    )  # fmt: skip


def _compile(module: Any, folder: Path, cflags: Sequence[str] | None, keep: str | Path | None) -> Path:
    target = parse_target("host")
    flags = list(target.cflags if cflags is None else cflags)
    out = folder / "library.so"
    if keep is not None:
        digest = hashlib.sha256("\0".join([target.compiler, *flags]).encode())
        for name, content in sorted(module.files.items()):
            digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
        kept = Path(keep) / f"{module.name}-{digest.hexdigest()[:16]}.so"
        if kept.exists():
            return kept
        out = kept.with_name(f"{kept.name}.{os.getpid()}")
    for name, content in module.files.items():
        (folder / name).write_bytes(content)
    sources = sorted(str(folder / n) for n in module.files if n.endswith((".c", ".o")))
    command = [target.compiler, "-std=c99", "-shared", "-fPIC", *flags, *sources, "-lm", "-o", str(out)]
    try:
        done = run_compiler("host", command)
    except FileNotFoundError as error:
        raise ToolMissingError(
            "host", target.compiler, "not installed", "a C compiler", "apt-get install gcc"
        ) from error
    if done.returncode != 0:
        raise KernelError(
            "host", "compiler", done.stderr.strip().splitlines()[-1:], "clean C99", "report this library"
        )
    return out if keep is None else out.replace(kept)
