"""A library with one entry per kernel, so that one firmware image measures and checks many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from tvm_tinytrain._version import __version__
from tvm_tinytrain.emit.c_expr import c_type, dtype_of
from tvm_tinytrain.emit.c_kernel import CKernel, print_kernel
from tvm_tinytrain.emit.kernel_source import kernel_source
from tvm_tinytrain.passes.kernels.builder import ROLES_ATTR, kernel_spec
from tvm_tinytrain.targets.runtime_files import runtime_folder

ALIGN = 8
_DTYPES = {"float32": "TT_FLOAT32", "int32": "TT_INT32", "uint8": "TT_UINT8", "int8": "TT_INT8"}


@dataclass(frozen=True)
class Argument:
    """A kernel's argument: the tensor ``<kernel>_<name>`` of the library, and whether the kernel reads, writes or updates it."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    offset: int


@dataclass(frozen=True)
class KernelSet:
    """A library (``name``, ``files``, ``metadata`` as a `TrainModule` has them) whose entries are kernels.

    All kernels use the same arena one after the other: write the arguments of one, call its entry, read its results.
    """

    name: str
    files: dict[str, bytes]
    metadata: dict[str, Any]
    arguments: dict[str, tuple[Argument, ...]]


def emit_kernel_set(
    name: str,
    kernels: Mapping[str, tirx.PrimFunc],
    *,
    minmax: bool = False,
    rows: Mapping[str, int] | None = None,
) -> KernelSet:
    """The library ``name`` of lowered PrimFuncs that `make_kernel` built; each key becomes an entry.

    ``rows``: with how many rows a kernel over a number of rows that is known at run time is called.
    """
    printed = {key: print_kernel(f"tt_{name}_kernel_{key}", func) for key, func in kernels.items()}
    arguments = {key: _arguments(key, func) for key, func in kernels.items()}
    tops = {key: _end(args) + printed[key].workspace_bytes for key, args in arguments.items()}
    arena_bytes = max([ALIGN, *tops.values()])
    files = {
        f"tt_{name}_{key}.c": kernel_source([kernel], f'#include "tt_{name}.h"', minmax=minmax).encode()
        for key, kernel in printed.items()
    }
    files[f"tt_{name}.h"] = _header(name, arena_bytes, printed).encode()
    files[f"tt_{name}.c"] = _entries(name, arguments, printed, rows or {}).encode()
    files["tinytrain.h"] = (runtime_folder() / "include" / "tinytrain.h").read_bytes()
    metadata = {
        "name": name,
        "memory": {"arena_bytes": arena_bytes},
        "macs": {key: int(kernel_spec(func).get("macs", 0)) for key, func in kernels.items()},
        "entries": ["init", *kernels],
        "tensors": [
            {"name": a.tensor, "role": "activation", "dtype": a.dtype, "shape": list(a.shape), "offset": a.offset, "bytes": _bytes(a)}
            for args in arguments.values()
            for a in args
        ],
    }  # fmt: skip
    return KernelSet(name, dict(sorted(files.items())), metadata, arguments)


def _arguments(key: str, func: tirx.PrimFunc) -> tuple[Argument, ...]:
    out, offset = [], 0
    roles = str(func.attrs[ROLES_ATTR]).split(",")
    shapes = _shapes(func)
    for param, role, shape in zip(func.params, roles, shapes, strict=True):
        arg = Argument(f"{key}_{param.name}", shape, dtype_of(param), role, offset)
        out.append(arg)
        offset += _round(_bytes(arg))
    return tuple(out)


def _shapes(func: tirx.PrimFunc) -> list[tuple[int, ...]]:
    return [tuple(int(d) for d in p.shape) for p in func.params]


def _bytes(arg: Argument) -> int:
    return math.prod(arg.shape) * tvm.runtime.DataType(arg.dtype).bits // 8


def _end(args: tuple[Argument, ...]) -> int:
    return args[-1].offset + _round(_bytes(args[-1]))


def _round(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN


def _header(name: str, arena_bytes: int, printed: Mapping[str, CKernel]) -> str:
    macro = f"TT_{name.upper()}"
    lines = [f"#ifndef {macro}_H", f"#define {macro}_H", '#include "tinytrain.h"']
    lines.append(f"#define {macro}_ARENA_BYTES {arena_bytes}")
    lines += [f"extern const tt_library tt_{name}_library;", f"int tt_{name}_init(void *arena, size_t bytes);"]  # fmt: skip
    lines += [f"int tt_{name}_{key}(void *arena);\n{k.prototype};" for key, k in printed.items()]
    return "\n".join([*lines, "#endif", ""])


def _entries(
    name: str,
    arguments: Mapping[str, tuple[Argument, ...]],
    printed: Mapping[str, CKernel],
    rows: Mapping[str, int],
) -> str:
    p, macro = f"tt_{name}", f"TT_{name.upper()}"
    parts = [
        f'#include "{p}.h"\n',
        f"int {p}_init(void *arena, size_t bytes) {{",
        f"  return arena == NULL ? TT_ERR_ARENA_NULL : bytes < {macro}_ARENA_BYTES ? TT_ERR_ARENA_SMALL : TT_OK;",
        "}\n",
        f"static int init_all(void *arena) {{ return {p}_init(arena, {macro}_ARENA_BYTES); }}\n",
    ]
    for key, kernel in printed.items():
        args = [f"({c_type(a.dtype)} *)(void *)(base + {a.offset})" for a in arguments[key]]
        if kernel.runtime_rows:
            args.append(str(rows[key]))
        if kernel.workspace_bytes:
            args.append(f"base + {_end(arguments[key])}")
        parts += [
            f"int {p}_{key}(void *arena) {{",
            "  unsigned char *const base = (unsigned char *)arena;",
            f"  {kernel.name}({', '.join(args)});",
            "  return TT_OK;",
            "}\n",
        ]
    table = [
        f'    {{"{a.tensor}", {_DTYPES[a.dtype]}, TT_ROLE_STATE, {len(a.shape)}, 0, '
        f"{{{', '.join(map(str, a.shape))}}}, {_bytes(a)}, {a.offset}, NULL}},"
        for args in arguments.values()
        for a in args
    ]
    entries = ['    {"init", init_all},', *(f'    {{"{key}", {p}_{key}}},' for key in printed)]
    parts += [
        "static const tt_tensor tensors[] = {",
        *table,
        "};\n",
        "static const tt_entry entries[] = {",
        *entries,
        "};\n",
    ]
    parts.append(
        f'const tt_library {p}_library = {{"{name}", "{__version__}", "0", {macro}_ARENA_BYTES, {ALIGN}, '
        f"{len(table)}, tensors, {len(entries)}, entries}};\n"
    )
    return "\n".join(parts)
