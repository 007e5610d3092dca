"""Small helpers around TVM's IRBuilder, shared by all kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

KERNEL_ATTR = "tt.kernel"
SPEC_ATTR = "tt.spec"
ROLES_ATTR = "tt.args"
OPAQUE_PATTERN = 8  # relax.op.OpPatternKind.kOpaque: FuseOps leaves the kernel alone


@dataclass(frozen=True)
class Arg:
    """One buffer parameter of a kernel.

    ``role`` is ``in``, ``out`` or ``inout``; an ``inout`` argument is updated in place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: str = "in"


def make_kernel(
    kind: str,
    spec: Any,
    args: Sequence[Arg],
    body: Callable[..., None],
    **options: Any,
) -> tirx.PrimFunc:
    """Builds a kernel ``kind`` whose ``body`` is called with one TIR buffer per argument.

    ``spec`` is a dataclass or a dict of JSON values, extended by ``options``; both end up in the attribute ``tt.spec``.
    """
    described = dict(spec) if isinstance(spec, dict) else asdict(spec)
    described.update(options)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(kind)
        T.func_attr(
            {
                "tirx.noalias": True,
                "op_pattern": OPAQUE_PATTERN,
                KERNEL_ATTR: kind,
                SPEC_ATTR: json.dumps(described, sort_keys=True, separators=(",", ":")),
                ROLES_ATTR: ",".join(a.role for a in args),
            }
        )
        body(*[T.arg(a.name, T.Buffer(a.shape, a.dtype)) for a in args])
    return ib.get()


def kernel_kind(func: tvm.ir.BaseFunc) -> str | None:
    """The kind of a kernel made by `make_kernel`, or None for any other function."""
    if func.attrs is None or KERNEL_ATTR not in func.attrs:
        return None
    return str(func.attrs[KERNEL_ATTR])


def kernel_spec(func: tvm.ir.BaseFunc) -> dict[str, Any]:
    """The parameters that the kernel was made from."""
    spec: dict[str, Any] = json.loads(str(func.attrs[SPEC_ATTR]))
    return spec


def executed_macs(func: tvm.ir.BaseFunc) -> int:
    """The multiply-accumulates that one call of a kernel executes: ``executed`` of its spec, else ``macs``; 0 for other functions.

    ``macs`` counts taps in the padding, by convention; ``executed`` stands beside it where the kernel leaves them out.
    """
    if kernel_kind(func) is None:
        return 0
    spec = kernel_spec(func)
    return int(spec.get("executed", spec.get("macs", 0)))


def f32(value: float) -> tirx.PrimExpr:
    """A float32 constant."""
    return tirx.const(value, "float32")


def all_of(*conditions: Any) -> Any:
    """The conjunction of conditions, leaving out those that are Python's True."""
    real = [c for c in conditions if c is not True]
    return True if not real else (real[0] if len(real) == 1 else tirx.all(*real))


def remap_all(loops: Any, rank: int) -> list[Any]:
    """Spatial block axes for all loops of a ``T.grid`` of any rank (TVM hands out a bare variable when the rank is one)."""
    if rank == 1:
        return [T.axis.remap("S", [loops if isinstance(loops, tvm.ir.Var) else loops[0]])]
    return list(T.axis.remap("S" * rank, list(loops)))


@contextmanager
def loops(names: str, *extents: int) -> Iterator[list[Any]]:
    """``T.grid`` over ``extents`` whose variables carry ``names`` (separated by blanks), always a list."""
    with T.grid(*extents) as found:
        variables = [found] if isinstance(found, tvm.ir.Var) else list(found)
        yield [IRBuilder.name(name, v) for name, v in zip(names.split(), variables, strict=True)]


def axes(kinds: str, variables: Sequence[Any]) -> list[Any]:
    """Block axes, one per letter of ``kinds`` (S spatial, R reduced), bound to loop variables; always a list."""
    found = T.axis.remap(kinds, list(variables))
    return [found] if isinstance(found, tvm.ir.Var) else list(found)


def intermediate(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """A buffer inside of a kernel; the schedule decides where it lives."""
    return IRBuilder.name(name, T.sblock_alloc_buffer(shape, dtype))
