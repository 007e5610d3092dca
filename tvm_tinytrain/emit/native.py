"""Kernels as one object file: TVM's LLVM compiles the same lowered functions that `c_kernel` prints, with C signatures.

TVM's own way wraps a function into its packed calling convention, which needs its runtime. Here buffer parameters become pointers
and the function keeps C's convention, so that the library's C code calls it by the prototype that `c_kernel` writes. What would be a
large array on the stack lies in the workspace, at the place that the printed kernel has for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType

from tvm_tinytrain.emit.c_expr import dtype_of
from tvm_tinytrain.emit.c_kernel import ROWS_LOOP, CKernel, workspace_buffers
from tvm_tinytrain.errors import KernelError


def emit_object(
    mod: tvm.IRModule, kernels: Mapping[str, CKernel], target: tvm.target.Target, *, library: str
) -> bytes:
    """The object file (ELF) of the kernels, position-independent, equal bytes for equal input.

    ``kernels`` are those that were printed from the module's functions: their names, workspaces and parameters are kept.
    Raises KernelError where LLVM refuses one.
    """
    functions = {
        gv.name_hint: f
        for gv, f in mod.functions.items()
        if isinstance(f, tirx.PrimFunc) and gv.name_hint in kernels
    }
    plain = tvm.IRModule({k: _with_pointers(functions[k], kernels[k]) for k in sorted(functions)})
    bound = tirx.transform.BindTarget(tvm.target.Target(target, host=target))(plain)
    try:
        compiled = tvm.get_global_func("target.build.llvm")(bound, target)
        with TemporaryDirectory(prefix="tinytrain-") as folder:
            path = Path(folder) / f"{library}.o"
            compiled.write_to_file(str(path), "o")
            return path.read_bytes()
    except (RuntimeError, ValueError, TypeError) as error:
        found = str(error).strip().splitlines()[-1]
        hint = 'build for the same core with "c -mcpu=..." and report this'
        raise KernelError(
            "emit object", f"kernels of {library}", found, "functions that LLVM compiles", hint
        ) from error


def _with_pointers(func: tirx.PrimFunc, printed: CKernel) -> tirx.PrimFunc:
    """The function over raw pointers: its tensors, then the number of rows, then the workspace, as far as it has them."""
    pointers = {p: tvm.ir.Var(f"{p.name}_pointer", PointerType(PrimType(dtype_of(p)))) for p in func.params}
    params: list[Any] = list(pointers.values())
    body = func.body
    if printed.runtime_rows:
        rows = tvm.ir.Var("rows", PrimType("int32"))
        params.append(rows)
        body = _end_at(body, rows)
    if printed.workspace_bytes:
        workspace = tvm.ir.Var("workspace", PointerType(PrimType("uint8")))
        params.append(workspace)
        body = _place(body, workspace, workspace_buffers(func))

    def data_of(call: Any) -> Any:  # `buffer.data` is a call with the buffer as its one argument
        return pointers[call.args[0]] if len(call.args) == 1 and call.args[0] in pointers else call

    body = tvm_ffi.structural_map(body, (tvm.ir.Call, data_of), order="post")
    plain = tirx.PrimFunc(params, body, func.ret_type, func.attrs)
    return plain.with_attr("calling_conv", 0).with_attr("global_symbol", printed.name)


def _end_at(body: Any, rows: Any) -> Any:
    """Loops over trained rows end at the argument ``rows``."""

    def shorten(loop: Any) -> Any:
        if not loop.annotations or ROWS_LOOP not in loop.annotations:
            return loop
        return tirx.For(
            loop.loop_var, loop.min, rows, loop.kind, loop.body, loop.thread_binding, {}, loop.step
        )

    return tvm_ffi.structural_map(body, (tirx.For, shorten), order="post")


def _place(body: Any, workspace: Any, buffers: Mapping[Any, int]) -> Any:
    """Large temporaries become views of the workspace."""

    def view(stmt: Any) -> Any:
        if stmt.buffer not in buffers:
            return stmt
        pointer = tirx.call_intrin(
            PointerType(PrimType(dtype_of(stmt.buffer))),
            "tirx.handle_add_byte_offset",
            workspace,
            buffers[stmt.buffer],
        )
        return tirx.DeclBuffer(stmt.buffer, data=pointer)

    return tvm_ffi.structural_map(body, (tirx.AllocBuffer, view), order="post")
