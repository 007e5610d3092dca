"""C99 text of one lowered kernel.

Accumulators that the schedule keeps in scope ``local`` become scalar variables, because GCC must assume that anything in a byte
pool aliases the tensors and then stores it at every multiply-accumulate. Larger temporaries come from the workspace that the memory
plan gives the kernel; nothing over 64 bytes is ever an array on the stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer

from tvm_tinytrain.emit.c_expr import ExprPrinter, c_type, dtype_of
from tvm_tinytrain.emit.c_vectors import (
    half_of,
    is_constant,
    lanes_of_dtype,
    ramp_of,
    vector_place,
    vector_type,
)
from tvm_tinytrain.emit.count_macs import counting_value
from tvm_tinytrain.errors import KernelError

MAX_STACK_ARRAY = 64
"""Bytes of the largest array that may stand on a kernel's stack."""
WORKSPACE_ALIGN = 8
SHORTEST_MOVE = 4
"""Elements from which on a loop that copies or clears becomes a call of a helper."""
ROWS_LOOP = "tt.rows"
"""Annotation of a loop that ends at the argument ``rows`` (see schedules.runtime_rows)."""


@dataclass(frozen=True)
class CKernel:
    """A kernel's C function: ``name``, its parameters' constness in order, the text, and the bytes of workspace it needs.

    With ``runtime_rows`` the function takes ``int32_t rows`` after its tensors.
    """

    name: str
    prototype: str
    text: str
    workspace_bytes: int
    writes: tuple[bool, ...]
    runtime_rows: bool = False


def print_kernel(name: str, func: tirx.PrimFunc, *, count_macs: bool = False) -> CKernel:
    """The C function ``name`` for a lowered PrimFunc over buffers; with ``count_macs`` it counts what it executes."""
    return _KernelPrinter(name, func, count_macs).run()


def workspace_buffers(func: tirx.PrimFunc) -> dict[Any, int]:
    """{temporary: its offset in the workspace} of a lowered PrimFunc, as `print_kernel` places them."""
    printer = _KernelPrinter("kernel", func, False)
    printer.run()
    return printer.placed


class _KernelPrinter:
    def __init__(self, name: str, func: tirx.PrimFunc, count_macs: bool) -> None:
        self.name = name
        self.func = func
        self.count_macs = count_macs
        self.names: dict[Any, str] = {}
        self.used: set[str] = {"workspace", "rows"}
        self.runtime_rows = False
        self.scalars: dict[Any, list[str]] = {}
        self.touched: dict[Any, set[int]] = {}
        self.lanes: dict[Any, int] = {}
        self.buffers: dict[Any, str] = {}
        self.written: set[str] = set()
        self.lines: list[str] = []
        self.workspace = 0
        self.placed: dict[Any, int] = {}
        self.expr = ExprPrinter(self._var, self._load, name)

    def run(self) -> CKernel:
        params = []
        for p in self.func.params:
            self.buffers[p] = self._fresh(p.name or "buffer")
            params.append((p, self.buffers[p]))
        self._collect_scalars()
        self._stmt(self.func.body, 1)
        writes = tuple(n in self.written for _, n in params)
        args = [
            f"{'' if w else 'const '}{c_type(dtype_of(p))} *restrict {n}"
            for (p, n), w in zip(params, writes, strict=True)
        ]
        if self.runtime_rows:
            args.append("int32_t rows")
        if self.workspace:
            args.append("unsigned char *restrict workspace")
        prototype = f"void {self.name}({', '.join(args)})"
        words = set(re.findall(r"\w+", "\n".join(self.lines)))
        unread = [f"  (void){n};" for _, n in params if n not in words]
        text = prototype + " {\n" + "\n".join([*unread, *self.lines]) + "\n}\n"
        return CKernel(self.name, prototype, text, self.workspace, writes, self.runtime_rows)

    # names

    def _fresh(self, wanted: str) -> str:
        base = "".join(c if c.isalnum() else "_" for c in wanted) or "v"
        if base[0].isdigit():
            base = "v" + base
        name, count = base, 0
        while name in self.used or name in _RESERVED:
            count += 1
            name = f"{base}_{count}"
        self.used.add(name)
        return name

    def _var(self, var: Any) -> str:
        if var not in self.names:
            raise KernelError(
                "emit C",
                f"kernel {self.name}",
                f"unbound variable {var}",
                "loop variables",
                "report this kernel",
            )
        return self.names[var]

    def _vector(self, buffer: Any, base: Any, stride: int, lanes: int, *, store: bool) -> str:
        """A vector in memory, or one of the variables that a buffer on the stack has become."""
        if buffer in self.scalars:
            whole = self.lanes[buffer]
            name = self.scalars[buffer][int(base) // whole]
            return name if lanes == whole else half_of(name, whole, upper=int(base) % whole > 0)
        return vector_place(self.name, self.buffers[buffer], self.expr(base), stride, lanes, store=store)

    def _element(self, buffer: Any, indices: Any, *, store: bool = False) -> str:
        if len(indices) != 1:
            raise KernelError(
                "emit C", f"kernel {self.name}", f"{len(indices)} indices", "one", "lower the kernel first"
            )
        ramp = ramp_of(indices)
        if ramp is not None:
            return self._vector(buffer, *ramp, store=store)
        if buffer in self.scalars:
            place = int(indices[0].value)
            lanes = self.lanes.get(buffer, 1)
            name = self.scalars[buffer][place // lanes]
            return f"{name}[{place % lanes}]" if lanes > 1 else name
        text = self.expr(indices[0])
        text = text[1:-1] if text.startswith("(") and _balanced(text[1:-1]) else text
        return f"{self.buffers[buffer]}[{text}]"

    def _load(self, buffer: Any, indices: Any) -> str:
        return self._element(buffer, indices)

    # statements

    def _out(self, depth: int, text: str) -> None:
        self.lines.append("  " * depth + text)

    def _collect_scalars(self) -> None:
        """Buffers on the stack that are only read and written at constant places become scalars."""
        allocated: dict[Any, int] = {}
        dynamic: set[Any] = set()
        accesses: dict[Any, list[tuple[Any, int, int, bool]]] = {}

        def visit_alloc(stmt: Any) -> None:
            allocated[stmt.buffer] = _size(stmt.buffer)

        def visit_access(buffer: Any, indices: Any, *, store: bool) -> None:
            if any(not is_constant(i) for i in indices):
                dynamic.add(buffer)
                return
            accesses.setdefault(buffer, []).append((*(ramp_of(indices) or (indices[0], 1, 1)), store))

        tvm_ffi.structural_walk(
            self.func.body,
            [
                (tirx.AllocBuffer, visit_alloc),
                (tirx.BufferStore, lambda s: visit_access(s.buffer, s.indices, store=True)),
                (tvm.ir.TensorLoad, lambda e: visit_access(e.source, e.indices, store=False)),
            ],
        )
        for buffer, found in accesses.items():
            whole = self.lanes[buffer] = max(lanes for _, _, lanes, _ in found)
            self.touched[buffer] = {int(base) for base, *_ in found}
            if not all(_in_variable(*access, whole) for access in found):
                dynamic.add(buffer)
        for buffer, size in allocated.items():
            if buffer not in dynamic and (buffer.scope() == "local" or size == 1):
                self.scalars[buffer] = []

    def _stmt(self, s: Any, depth: int) -> None:
        kind = type(s).__name__
        if kind == "SeqStmt":
            for inner in s.seq:
                self._stmt(inner, depth)
        elif kind == "AllocBuffer":
            self._allocate(s.buffer, depth)
        elif kind == "DeclBuffer":
            source = s.data.args[0] if isinstance(s.data, tvm.ir.Call) else s.data
            self.buffers[s.buffer] = self.buffers[source]
            if source in self.scalars:
                self.scalars[s.buffer] = self.scalars[source]
        elif kind == "For":
            self._loop(s, depth)
        elif kind == "BufferStore":
            target = self._element(s.buffer, s.indices, store=True)
            if s.buffer not in self.scalars:
                self.written.add(self.buffers[s.buffer])
            counting = counting_value(s, self.expr) if self.count_macs else None
            self._out(depth, f"{target} = {counting or _bare(self.expr(s.value))};")
        elif kind == "Bind":
            value = _bare(self.expr(s.value))
            self.names[s.var] = self._fresh(s.var.name)
            self._out(depth, f"const {c_type(dtype_of(s.var))} {self.names[s.var]} = {value};")
        elif kind == "IfThenElse":
            self._out(depth, f"if ({_bare(self.expr(s.condition))}) {{")
            self._stmt(s.then_case, depth + 1)
            if s.else_case is not None:
                self._out(depth, "} else {")
                self._stmt(s.else_case, depth + 1)
            self._out(depth, "}")
        elif kind == "AttrStmt":
            self._stmt(s.body, depth)
        elif kind == "Evaluate":
            if not isinstance(s.value, tirx.IntImm):
                self._out(depth, f"{self.expr(s.value)};")
        else:
            raise KernelError(
                "emit C", f"kernel {self.name}", kind, "statements of C99", "report this kernel"
            )

    def _loop(self, s: Any, depth: int) -> None:
        moved = self._block_move(s)
        if moved is not None:
            self._out(depth, moved)
            return
        name = self._fresh(s.loop_var.name)
        self.names[s.loop_var] = name
        start = self.expr(s.min)
        end = self.expr(s.extent) if start == "0" else _bare(self.expr(s.min + s.extent))
        if s.annotations and ROWS_LOOP in s.annotations:
            end, self.runtime_rows = "rows", True
        step = f"{name} += {self.expr(s.step)}" if s.step is not None and str(s.step) != "1" else f"++{name}"
        self._out(depth, f"for (int32_t {name} = {start}; {name} < {end}; {step}) {{")
        self._stmt(s.body, depth + 1)
        self._out(depth, "}")
        self.used.discard(name)

    def _block_move(self, s: Any) -> str | None:
        """A call of tt_copy or tt_zero for a loop that does nothing but that to neighbouring elements, else None."""
        store = s.body
        if not isinstance(store, tirx.BufferStore) or not _constant_trips(s) or s.annotations:
            return None
        if store.buffer in self.scalars or dtype_of(store.value) != "float32":
            return None
        target = _first_of_run(store.indices, s.loop_var)
        if target is None:
            return None
        count = int(s.extent)
        if isinstance(store.value, tirx.FloatImm) and float(store.value.value) == 0.0:
            self.written.add(self.buffers[store.buffer])
            return f"tt_zero({self._place(store.buffer, target)}, {count});"
        load = store.value
        if (
            not isinstance(load, tvm.ir.TensorLoad)
            or load.source in self.scalars
            or load.source.same_as(store.buffer)
        ):
            return None
        source = _first_of_run(load.indices, s.loop_var)
        if source is None:
            return None
        self.written.add(self.buffers[store.buffer])
        return f"tt_copy({self._place(store.buffer, target)}, {self._place(load.source, source)}, {count});"

    def _place(self, buffer: Any, index: Any) -> str:
        """The address of an element."""
        text = _bare(self.expr(index))
        return self.buffers[buffer] if text == "0" else f"{self.buffers[buffer]} + {text}"

    def _allocate(self, buffer: Any, depth: int) -> None:
        dtype, size = dtype_of(buffer), _size(buffer)
        bytes_ = size * lanes_of_dtype(dtype) * int(tvm.runtime.DataType(dtype).bits) // 8
        ctype = c_type(dtype)
        name = self._fresh((buffer.name or "temp").removesuffix("_local"))
        self.buffers[buffer] = name
        if buffer in self.scalars:
            self._scalars(buffer, name, size, ctype, depth)
            return
        ctype += "u" if lanes_of_dtype(dtype) > 1 else ""  # a vector in memory may begin at any float
        if bytes_ <= MAX_STACK_ARRAY:
            self._out(depth, f"{ctype} {name}[{size}];")
        else:
            offset = self.placed[buffer] = self.workspace
            self.workspace += (bytes_ + WORKSPACE_ALIGN - 1) // WORKSPACE_ALIGN * WORKSPACE_ALIGN
            self._out(depth, f"{ctype} *restrict {name} = ({ctype} *)(void *)(workspace + {offset});")

    def _scalars(self, buffer: Any, name: str, size: int, ctype: str, depth: int) -> None:
        """Declares the variables that a buffer on the stack has become; only those that are used."""
        lanes = self.lanes.get(buffer, 1)
        count = (size + lanes - 1) // lanes
        self.scalars[buffer] = [name] if size == 1 else [self._fresh(f"{name}_{i}") for i in range(count)]
        ctype = vector_type(lanes) if lanes > 1 else ctype
        zero = "{0}" if lanes > 1 or lanes_of_dtype(dtype_of(buffer)) > 1 else "0"
        places = sorted({p // lanes for p in self.touched.get(buffer, ())})
        for i in range(0, len(places), 8):
            row = ", ".join(f"{self.scalars[buffer][p]} = {zero}" for p in places[i : i + 8])
            self._out(depth, f"{ctype} {row};")


_RESERVED = frozenset(
    (
        "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
        "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
        "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "y0", "y1",
        "yn", "j0", "j1", "jn",
    )
)  # fmt: skip


def _in_variable(base: Any, stride: int, lanes: int, store: bool, whole: int) -> bool:
    """Whether an access is to one variable of ``whole`` elements: to all of it, to one of them, or reads half of it."""
    return lanes == 1 or (
        stride == 1 and int(base) % lanes == 0 and (lanes == whole or (2 * lanes == whole and not store))
    )


def _constant_trips(loop: tirx.For) -> bool:
    """Whether a loop has a fixed number of iterations, worth a call."""
    fixed = isinstance(loop.min, tirx.IntImm) and isinstance(loop.extent, tirx.IntImm) and loop.step is None
    return (
        fixed
        and loop.kind == tirx.ForKind.SERIAL
        and int(loop.min) == 0
        and int(loop.extent) >= SHORTEST_MOVE
    )


def _at(index: Any, variable: Any, value: int) -> Any:
    """The index where ``variable`` is ``value``."""
    return tvm_ffi.structural_map(
        index, [(tvm.ir.Var, lambda v: _int(value, v) if v.same_as(variable) else v)]
    )


def _first_of_run(indices: Any, variable: Any) -> Any:
    """The index at which a run of neighbouring elements begins as ``variable`` counts from zero; None if it is no such run."""
    if len(indices) != 1:
        return None
    first, second = (_at(indices[0], variable, k) for k in (0, 1))
    analyzer = Analyzer()
    if not analyzer.can_prove_equal(second - first, 1) or not analyzer.can_prove_equal(
        indices[0], first + variable
    ):
        return None
    return analyzer.simplify(first)


def _int(value: int, like: Any) -> Any:
    return tirx.IntImm(like.ty.dtype, value)


def _size(buffer: Any) -> int:
    size = 1
    for d in buffer.shape:
        size *= int(d)
    return size


def _balanced(text: str) -> bool:
    depth = 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if depth < 0:
            return False
    return depth == 0


def _bare(text: str) -> str:
    """The expression without parentheses around all of it."""
    return text[1:-1] if text.startswith("(") and text.endswith(")") and _balanced(text[1:-1]) else text
