"""The library as C99 files: kernels, parameters, entries, header. Returns {path: bytes} and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import tirx

from tvm_tinytrain.emit.c_adaptive import (
    AdaptiveLibrary,
    adaptive_entry,
    adaptive_extras,
    runtime_files,
)
from tvm_tinytrain.emit.c_expr import c_type, float_literal
from tvm_tinytrain.emit.c_kernel import CKernel, print_kernel
from tvm_tinytrain.emit.kernel_source import BANNER, kernel_comment, kernel_source
from tvm_tinytrain.errors import DTypeError, PlanError
from tvm_tinytrain.own_tensors import HYPER
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.plan_memory import ALIGN, ArenaPlan
from tvm_tinytrain.passes.program import Entry, Program, Storage
from tvm_tinytrain.passes.state import check_new
from tvm_tinytrain.targets.runtime_files import runtime_folder, taken_names
from tvm_tinytrain.values import within_axes

_ROLES = {
    "input": "TT_ROLE_INPUT", "label": "TT_ROLE_LABEL", "output": "TT_ROLE_OUTPUT", "loss": "TT_ROLE_LOSS", "param": "TT_ROLE_PARAM",
    "const": "TT_ROLE_CONST", "list": "TT_ROLE_CONST", "state": "TT_ROLE_STATE", "grad": "TT_ROLE_GRAD", "fisher": "TT_ROLE_FISHER",
    "plan": "TT_ROLE_PLAN",
}  # fmt: skip
_DTYPES = {"float32": "TT_FLOAT32", "int32": "TT_INT32", "uint8": "TT_UINT8", "int8": "TT_INT8"}
_FILE_ENDS = ("_internal", "_kernels", "_params")


@dataclass(frozen=True)
class PublicTensor:
    """A tensor that callers may read or write; ``storage`` is its name in the program."""

    name: str
    role: str
    storage: Storage
    offset: int | None


@dataclass(frozen=True)
class Library:
    """Everything that the C files are written from. ``kernel_object``: the compiled kernels, which then are not printed."""

    name: str
    version: str
    digest: str
    program: Program
    arena: ArenaPlan
    kernels: Mapping[str, CKernel]
    values: Mapping[str, np.ndarray]
    label_limit: int | None
    minmax: bool = False
    adaptive: AdaptiveLibrary | None = None
    kernel_object: bytes | None = None

    @property
    def prefix(self) -> str:
        """What all global names begin with."""
        return f"tt_{self.name}"

    @property
    def moving(self) -> frozenset[str]:
        """Tensors of trained rows, whose place is found at run time."""
        return (
            frozenset(r.name for r in self.adaptive.plan.rows) if self.adaptive is not None else frozenset()
        )

    def entry_names(self) -> list[str]:
        """All entries in order, init left out."""
        names = [e.name for e in self.program.entries]
        return names if self.adaptive is None else [*names, *self.adaptive.extra_entries]

    def tensors(self) -> list[PublicTensor]:
        """Public tensors in a stable order: inputs, label, output, loss, then parameters by name."""
        out = []
        for s in self.program.storages:
            if s.role in ("input", "label"):
                out.append(PublicTensor(s.name, s.role, s, self.arena.fixed[s.name]))
        for entry in self.program.entries:
            if entry.result is not None and entry.name != "fisher":
                role = "output" if entry.name == "predict" else "loss"
                storage = self.program.storage(entry.result)
                out.append(PublicTensor(role, role, storage, self.arena.offset(entry.name, entry.result)))
        rest = [
            s
            for s in self.program.storages
            if s.role in ("param", "state", "grad", "plan") and s.name in self.arena.fixed
        ]
        if self.adaptive is not None:
            fisher = self.adaptive.plan.depths[-1]
            deltas = [s for s in self.program.storages if s.role == "fisher"]
            out += [PublicTensor(s.name, s.role, s, fisher.offset("fisher", s.name)) for s in deltas]
        out += [
            PublicTensor(s.name, s.role, s, self.arena.fixed[s.name])
            for s in sorted(rest, key=lambda s: s.name)
        ]
        consts = [
            s for s in self.program.storages if s.role in ("const", "list") and s.name not in self.moving
        ]
        out += [PublicTensor(s.name, s.role, s, None) for s in sorted(consts, key=lambda s: s.name)]
        return out


def print_kernels(name: str, mod: tvm.IRModule, *, count_macs: bool = False) -> dict[str, CKernel]:
    """All kernels of a lowered module as C functions, by their name in the module.

    ``count_macs`` instruments those that are made for multiply-accumulates (``macs`` in their spec).
    """
    found = sorted((gv.name_hint, f) for gv, f in mod.functions.items() if isinstance(f, tirx.PrimFunc))
    counting = {k for k, f in found if count_macs and kernel_kind(f) and kernel_spec(f).get("macs")}
    printed = {k: print_kernel(f"tt_{name}_kernel_{k}", func, count_macs=k in counting) for k, func in found}
    return {k: replace(printed[k], text=kernel_comment(func) + printed[k].text) for k, func in found}


def check_name(name: str) -> None:
    """Raises PlanError where a library's files or symbols would be the C runtime's, or those of another library beside it."""
    taken = taken_names()
    if name.lower() in taken:  # TT_LOOP_H guards tt_Loop.h too
        allowed = f"a name other than {', '.join(taken)}"
        raise PlanError("config", "name", repr(name), allowed, "choose another name")
    if name.endswith(_FILE_ENDS):
        hint = f"a library {name.rsplit('_', 1)[0]!r} would have files of this name"
        allowed = f"no name that ends in {', '.join(_FILE_ENDS)}"
        raise PlanError("config", "name", repr(name), allowed, hint)


def emit_c(library: Library) -> dict[str, bytes]:
    """The library's C files; KernelError where two of its tensors have one name."""
    names: set[str] = set()
    for tensor in library.tensors():
        check_new(tensor.name, names)
        names.add(tensor.name)
    texts = {
        f"{library.prefix}.h": _public_header(library),
        f"{library.prefix}_internal.h": _internal_header(library),
        f"{library.prefix}_params.c": _params(library),
        f"{library.prefix}.c": _entries(library),
    }
    if library.kernel_object is None:
        texts[f"{library.prefix}_kernels.c"] = _kernels(library)
    files = {path: text.encode() for path, text in texts.items()}
    if library.kernel_object is not None:
        files[f"{library.prefix}_kernels.o"] = library.kernel_object
    files["tinytrain.h"] = (runtime_folder() / "include" / "tinytrain.h").read_bytes()
    if library.adaptive is None:
        return files
    return files | runtime_files()


def _guard(library: Library, suffix: str, body: str) -> str:
    macro = f"{library.prefix}{suffix}_H"
    # Of `Net` beside `net` the second header must not be skipped: the compiler then says which macros the two share.
    macro = macro.upper() if library.prefix.islower() else macro
    return f"{BANNER}#ifndef {macro}\n#define {macro}\n\n{body}\n#endif /* {macro} */\n"


def _public_header(library: Library) -> str:
    p, up = library.prefix, library.prefix.upper()
    vocabulary = "tinytrain.h" if library.adaptive is None else "tt_checkpoint.h"
    lines = [f'#include "{vocabulary}"', "", "#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    lines += [
        "/* Bytes of the arena, and its alignment. The caller owns it:",
        f" *   static uint64_t arena[{up}_ARENA_BYTES / 8]; */",
        f"#define {up}_ARENA_BYTES {library.arena.arena_bytes}",
        f"#define {up}_ARENA_ALIGN {ALIGN}",
        "",
    ]
    for t in library.tensors():
        if t.role in ("input", "label", "output", "loss") or t.name == HYPER:
            macro = f"{up}_{t.name.upper()}"
            shape = "][".join(str(d) for d in t.storage.shape)
            note = "; element 0 is the learning rate, which may be written between calls" * (t.name == HYPER)
            lines.append(
                f"/* {t.name}: {c_type(t.storage.dtype)}[{shape}] at this offset of the arena{note}. */"
            )
            lines.append(f"#define {macro}_OFFSET {t.offset}")
            lines.append(f"#define {macro}_BYTES {t.storage.bytes}")
    lines += [
        "",
        "/* The same as a table: tensors and entries by name. */",
        f"extern const tt_library {p}_library;",
        "",
    ]
    lines += [
        "/* Functions of type int return TT_OK, or a negative tt_status. Inputs and targets have to be finite, which nothing checks:",
        " * a NaN may vanish from outputs and losses in a clamp while it spoils the weights that it trains. */",
        "",
        "/* Checks the arena and writes the initial parameters into it. Call it first. */",
        f"int {p}_init(void *arena, size_t bytes);",
    ]
    notes = {
        "predict": "Reads the input, writes the output. Write the input again before each call, of this and of other entries.",
        "step": "Reads input and label, trains on this one sample, writes the loss.",
        "step_adaptive": "accumulate, then apply: trains what is selected on this one sample.",
        "step_store": "As step; keeps the frozen prefix's result in a cache slot.",
        "step_cached": "As step from that slot: needs the label only; TT_ERR_STATE where this plan stored nothing there.",
        "accumulate": "Reads input and label, adds this sample's gradients, writes the loss.",
        "apply": "Updates the parameters from the accumulated gradients and clears them.",
        "fisher": "Reads input and label, adds this sample's Fisher potentials: after fisher_begin, and no predict since.",
        "fisher_begin": "Clears the Fisher potentials. They are gone after predict, which uses the same bytes.",
        "select": "Chooses layers and channels by the Fisher potentials within the budgets, and installs them.",
        "install": "Installs the channels whose bits are set in the tensor request; TT_ERR_BAD_VALUE for bits behind the last one.",
        "release": "Forgets what was trained: nothing is selected.",
        "predict_store": "As predict; keeps the frozen prefix's result in the cache slot that the tensor slot names.",
        "predict_cached": "As predict from that slot: needs no input; TT_ERR_STATE where this plan stored nothing there.",
        "accumulate_store": "As accumulate; keeps the frozen prefix's result in a cache slot.",
        "accumulate_cached": "As accumulate from that slot: needs the label only; TT_ERR_STATE where this plan stored nothing there.",
    }
    for entry in library.entry_names():
        note = "step_adaptive" if entry == "step" and "accumulate" in library.entry_names() else entry
        lines += [
            f"/* {notes[note]} */",
            f"int {p}_{entry}(void *arena);",
        ]
    if library.adaptive is not None:
        lines += [
            "/* Bytes of a checkpoint of what was trained; writes it to a buffer outside of the arena; takes it back. Refuses a",
            " * damaged checkpoint or another library's, and then changes nothing (see tt_checkpoint.h). */",
            f"size_t {p}_save_size(const void *arena);",
            f"int {p}_save(const void *arena, void *buffer, size_t capacity);",
            f"int {p}_save_to(const void *arena, tt_checkpoint_sink sink, void *context);",
            f"int {p}_load(void *arena, const void *bytes, size_t count);",
        ]
    lines += ["", "#ifdef __cplusplus", "}", "#endif", ""]
    return _guard(library, "", "\n".join(lines))


def _internal_header(library: Library) -> str:
    lines = ["#include <stdint.h>", ""]
    for name in sorted(library.values):
        if in_flash(library, name) is not None:
            value = library.values[name]
            lines.append(f"extern const {c_type(str(value.dtype))} {library.prefix}_{name}[{value.size}];")
    lines.append("")
    lines += [f"{k.prototype};" for k in library.kernels.values()]
    lines.append("")
    return _guard(library, "_INTERNAL", "\n".join(lines))


def _kernels(library: Library) -> str:
    return kernel_source(
        library.kernels.values(), f'#include "{library.prefix}_internal.h"', minmax=library.minmax
    )


def in_flash(library: Library, name: str) -> Storage | None:
    """The storage whose initial value stands in flash: constants, and trained parameters unless all zero."""
    if name in library.moving:
        return None
    for s in library.program.storages:
        if s.name == name:
            zero = s.role in ("state", "grad", "fisher", "plan") and not np.any(library.values[name])
            return None if zero else s
    return None


def _params(library: Library) -> str:
    infinite = any(v.dtype == np.float32 and np.isinf(v).any() for v in library.values.values())
    parts = [
        f'{BANNER}#include "{library.prefix}_internal.h"\n' + ("\n#include <math.h>\n" if infinite else "")
    ]
    for name in sorted(library.values):
        storage = in_flash(library, name)
        if storage is None:
            continue
        value = library.values[name]
        shape = "][".join(str(d) for d in value.shape)
        role = {"const": "constant", "list": "channel list"}.get(storage.role, "initial value")
        flat = value.reshape(-1)
        words = (
            [float_literal(float(v)) for v in flat]
            if value.dtype == np.float32
            else [str(int(v)) for v in flat]
        )
        rows = ",\n    ".join(", ".join(words[i : i + 8]) for i in range(0, len(words), 8))
        ctype = c_type(str(value.dtype))
        parts.append(
            f"/* {name}[{shape}], {role} */\nconst {ctype} {library.prefix}_{name}[{value.size}] = {{\n    {rows}}};\n"
        )
    return "\n".join(parts)


def _entries(library: Library) -> str:
    p = library.prefix
    parts = [f'{BANNER}#include "{p}.h"\n\n#include <string.h>\n\n#include "{p}_internal.h"\n']
    parts.append(
        "#define TT_F32(offset) ((float *)(void *)(base + (offset)))\n"
        "#define TT_I32(offset) ((int32_t *)(void *)(base + (offset)))\n"
        "#define TT_U8(offset) (base + (offset))\n"
    )
    if library.adaptive is None:
        parts.append(_init(library))
        parts += [_entry(library, entry) for entry in library.program.entries]
    else:
        before, after = adaptive_extras(library.adaptive, library.program, p, library.arena)
        parts += [
            before,
            _init(library),
            *(_adaptive_entry(library, e) for e in library.program.entries),
            after,
        ]
    parts.append(_tables(library))
    return "\n".join(parts)


def _init(library: Library) -> str:
    lines = [
        f"int {library.prefix}_init(void *arena, size_t bytes) {{",
        "  unsigned char *const base = (unsigned char *)arena;",
    ]
    lines += [
        "  if (arena == NULL)", "    return TT_ERR_ARENA_NULL;",
        f"  if (bytes < {library.prefix.upper()}_ARENA_BYTES)", "    return TT_ERR_ARENA_SMALL;",
        f"  if (((uintptr_t)arena & ({ALIGN} - 1)) != 0)", "    return TT_ERR_ARENA_ALIGN;",
    ]  # fmt: skip
    for t in library.tensors():
        if t.role not in ("param", "state", "grad", "plan"):
            continue
        if in_flash(library, t.name) is not None:
            lines.append(f"  memcpy(base + {t.offset}, {library.prefix}_{t.name}, {t.storage.bytes});")
        else:
            lines.append(f"  memset(base + {t.offset}, 0, {t.storage.bytes}); /* {t.name} */")
    if library.adaptive is not None:
        lines.append("  tt_rows_clear(&rows_table, TT_PLAN(base));")
    return "\n".join([*lines, "  return TT_OK;", "}", ""])


def _label_check(library: Library, entry: Entry) -> list[str]:
    label = next((s for s in library.program.storages if s.role == "label" and s.name in entry.inputs), None)
    if label is None or label.dtype != "int32" or library.label_limit is None:
        return []
    where = f"*TT_I32({library.arena.fixed[label.name]})"
    return [f"  if ({where} < 0 || {where} >= {library.label_limit})", "    return TT_ERR_BAD_VALUE;"]


def _adaptive_entry(library: Library, entry: Entry) -> str:
    assert library.adaptive is not None
    return adaptive_entry(
        library.adaptive,
        library.program,
        entry,
        library.kernels,
        library.prefix,
        _label_check(library, entry),
    )


def _entry(library: Library, entry: Entry) -> str:
    lines = [
        f"int {library.prefix}_{entry.name}(void *arena) {{",
        "  unsigned char *const base = (unsigned char *)arena;",
    ]
    lines += _label_check(library, entry)
    for call, workspace in zip(entry.calls, library.arena.workspaces[entry.name], strict=True):
        args = [_argument(library, entry, name) for name in call.args]
        if workspace is not None:
            args.append(f"base + {library.arena.plans[entry.name][workspace]}")
        lines.append(f"  /* {call.note} */")
        lines.append(f"  {library.kernels[call.kernel].name}({', '.join(args)});")
    return "\n".join([*lines, "  return TT_OK;", "}", ""])


def _argument(library: Library, entry: Entry, name: str) -> str:
    storage = library.program.storage(name)
    if storage.role in ("const", "list"):
        return f"{library.prefix}_{name}"
    macro = {"float32": "TT_F32", "int32": "TT_I32", "uint8": "TT_U8"}.get(storage.dtype)
    if macro is None:
        raise DTypeError("emit", name, storage.dtype, "float32, int32, uint8", "leave positions out")
    return f"{macro}({library.arena.offset(entry.name, name)})"


def _tables(library: Library) -> str:
    p = library.prefix
    rows = []
    for t in library.tensors():
        axes = within_axes(t.storage.shape)
        shape = ", ".join(str(d) for d in axes) or "0"  # C99 has no empty initialisers
        data = f"{p}_{t.name}" if t.offset is None else "NULL"
        rows.append(
            f'    {{"{t.name}", {_DTYPES[t.storage.dtype]}, {_ROLES[t.role]}, {len(axes)}, 0, {{{shape}}}, '
            f"{t.storage.bytes}, {t.offset or 0}, {data}}},"
        )
    init = f"static int init_all(void *arena) {{ return {p}_init(arena, {p.upper()}_ARENA_BYTES); }}\n"
    entries = ['    {"init", init_all},'] + [f'    {{"{e}", {p}_{e}}},' for e in library.entry_names()]
    return (
        "static const tt_tensor tensors[] = {\n" + "\n".join(rows) + "\n};\n\n" + init + "\n"
        "static const tt_entry entries[] = {\n" + "\n".join(entries) + "\n};\n\n"
        f'const tt_library {p}_library = {{"{library.name}", "{library.version}", "{library.digest}", '
        f"{p.upper()}_ARENA_BYTES, {ALIGN}, {len(rows)}, tensors, {len(entries)}, entries}};\n"
    )
