"""What code is generated for: a kind of code, a core, and the compiler flags that follow from them."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import TargetError
from tvm_tinytrain.targets.cores import AARCH64, ALIASES, CORES, Core

KINDS = ("c", "llvm")
_KEYS = ("kind", "mcpu", "mtriple", "mattr", "keys")
_DERIVED = ("tag", "host", "model", "num-cores")  # TVM prints them; they decide nothing here
_FLOAT_ABI = "mfloat-abi"  # TVM's name for what follows from the core
_OF_CORE = (_FLOAT_ABI, "mfpu")  # compilers' names for it
_FEATURE = "feature."  # TVM derives such attributes from the others
_MACHINES = {"arm64": "aarch64", "armv7": "arm", "armv7a": "arm", "armv7l": "arm", "thumbv7em": "arm"}
_BARE = {"none", "unknown", "eabi", "eabihf"}
_HINT = 'write e.g. "c -mcpu=cortex-m7", "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53" or "host"'


@dataclass(frozen=True)
class Target:
    """A code generation target.

    Attributes
    ----------
    kind
        ``"c"``: C99 sources; ``"llvm"``: native kernels by TVM's LLVM.
    mcpu
        A core of `targets.cores.CORES`, or ``"host"``.
    mtriple
        The toolchain's triple, e.g. ``"arm-none-eabi"``.
    mattr
        Features that LLVM is to use beside the core's own, or not to use, e.g. ``("+dotprod",)``; for kind ``"llvm"`` only.
    """

    kind: str
    mcpu: str
    mtriple: str
    mattr: tuple[str, ...] = ()

    @property
    def core(self) -> Core:
        """The core's description; for ``host`` the one of this machine."""
        return CORES[host_core_name() if self.mcpu == "host" else self.mcpu]

    @property
    def cflags(self) -> tuple[str, ...]:
        """Compiler flags that decide the code: optimisation, core, rounding."""
        return ("-O3", *self.core.cflags)

    @property
    def compiler(self) -> str:
        """The C compiler's name: ``gcc`` for this machine, else ``<triple>-gcc``."""
        return "gcc" if self.mtriple == CORES[host_core_name()].triple else f"{self.mtriple}-gcc"

    def to_tvm(self) -> Any:
        """Return the ``tvm.target.Target``; TVM is imported here and not before.

        Raises TargetError for a feature in `mattr` that LLVM does not know: LLVM itself would go on without it.
        """
        from tvm.target import Target as TvmTarget
        from tvm.target.codegen import llvm_get_cpu_features

        options: dict[str, object] = {"kind": self.kind}
        if self.kind == "llvm":
            options["mtriple"] = self.mtriple
            if _flag(self.core, _FLOAT_ABI) == "hard":
                options[_FLOAT_ABI] = "hard"
        if self.mcpu != "host":
            options["mcpu"] = self.mcpu
        for feature in self.mattr:
            name = feature[1:]
            if name not in llvm_get_cpu_features(TvmTarget({**options, "mattr": [f"+{name}"]})):
                allowed = f"a feature of {self.mtriple} that LLVM knows"
                raise TargetError(
                    "target", str(self), f"feature {feature!r}", allowed, "leave it out of -mattr"
                )
        attributes = [*(self.core.llvm_attributes if self.kind == "llvm" else ()), *self.mattr]
        if attributes:
            options["mattr"] = attributes
        return TvmTarget(options)

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain values, as they stand in an archive's metadata."""
        return {"kind": self.kind, "mcpu": self.mcpu, "mtriple": self.mtriple, "mattr": list(self.mattr)}

    def __str__(self) -> str:
        if self.mcpu == "host" and self.kind == "c":
            return "host"
        attributes = f" -mattr={','.join(self.mattr)}" if self.mattr else ""
        triple = f" -mtriple={self.mtriple}" if self.kind == "llvm" else ""
        return f"{self.kind}{triple} -mcpu={self.mcpu}{attributes}"


@cache
def host_core_name() -> str:
    """Return the core of `CORES` that this machine's C code is compiled for."""
    if platform.machine() in ("aarch64", "arm64"):
        return "cortex-a53"
    try:
        has_fma = " fma " in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        has_fma = False
    return "x86-64" if has_fma else "x86-64-baseline"


def parse_target(target: object) -> Target:
    """Read a target from text, a mapping, a ``tvm.target.Target`` or a `Target`.

    Parameters
    ----------
    target
        ``"host"``, ``"c"`` (this machine), ``"c -mcpu=cortex-m7"``, ``{"kind": "c", "mcpu": "cortex-m7"}``,
        ``"llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53"``, or TVM's object of the same.

    Raises
    ------
    TargetError
        Unknown kind, core or option, a triple, float ABI or FPU that the core does not have, another core than this machine's for
        ``host``, or features for C.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        return _from_fields(_split(target), target)
    if isinstance(target, Mapping):
        return _from_fields(dict(target), str(dict(target)))
    if type(target).__module__.startswith("tvm"):
        return _from_fields(_fields_of_tvm(target), str(target))
    raise TargetError("target", repr(target), type(target).__name__, "text, a mapping or a TVM target", _HINT)


def _split(text: str) -> dict[str, object]:
    if text.lstrip().startswith("{"):
        import json

        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise TargetError("target", text, f"{error}", "a JSON object", _HINT) from error
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError("target", text, error, "a kind and options", _HINT) from error
    if not words:
        raise TargetError("target", "text", "nothing", "a kind and options", _HINT)
    fields: dict[str, object] = {"kind": words[0]}
    for word in words[1:]:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not equals:
            raise TargetError("target", text, word, "options of the form -name=value", _HINT)
        if name.startswith(_FEATURE):
            raise TargetError("target", text, word, "options of the core, e.g. -mattr=+...", _HINT)
        if not value or name in fields:
            found = f"{word} {'without a value' if not value else 'after another one'}"
            raise TargetError("target", text, found, "each option once, with a value", _HINT)
        fields[name] = value
    return fields


def _fields_of_tvm(target: Any) -> dict[str, object]:
    fields: dict[str, object] = {"kind": str(target.kind.name)}
    for name, value in target.attrs.items():
        plain = value if isinstance(value, int | float) else str(value)
        fields[str(name)] = [str(item) for item in value] if name == "mattr" else plain
    return fields


def _from_fields(fields: Mapping[Any, object], text: str) -> Target:
    for name in fields:
        known = name in (*_KEYS, *_DERIVED, *_OF_CORE) or str(name).startswith(_FEATURE)
        if not known:
            raise TargetError("target", text, f"option {name!r}", ", ".join((*_KEYS, *_OF_CORE)), _HINT)
    kind = str(fields.get("kind", "c"))
    this_machine = kind == "host"
    if this_machine:
        kind = "c"
    if kind not in KINDS:
        raise TargetError("target", text, f"kind {kind!r}", "host, " + ", ".join(KINDS), _HINT)
    triple = str(fields["mtriple"]) if fields.get("mtriple") else None
    mcpu = _core_name(fields.get("mcpu"), triple, text)
    if this_machine and mcpu != "host":
        raise TargetError("target", text, f"host with {mcpu}", "host alone", f'write "c -mcpu={mcpu}"')
    core = CORES[host_core_name() if mcpu == "host" else mcpu]
    if triple is not None and mcpu != "host" and not _same_system(triple, core.triple):
        raise TargetError("target", text, f"triple {triple} with {mcpu}", core.triple, _HINT)
    for name in _OF_CORE:
        if fields.get(name) not in (None, _flag(core, name)):
            found, allowed = f"{name} {fields[name]} with {mcpu}", _flag(core, name) or "none"
            raise TargetError("target", text, found, allowed, "leave it out: it follows from the core")
    attributes = tuple(a for a in _attributes(fields.get("mattr"), text) if a not in core.llvm_attributes)
    if attributes and kind != "llvm":
        hint = "leave it out: the core says what the C compiler is told"
        raise TargetError("target", text, f"mattr {','.join(attributes)} of kind {kind}", "kind llvm", hint)
    return Target(kind, mcpu, core.triple, attributes)


def _flag(core: Core, name: str) -> str | None:
    """The value of a compiler's option, where the core's compiler has to be told."""
    flags = [flag.partition("=")[2] for flag in core.cflags if flag.startswith(f"-{name}=")]
    return flags[0] if flags else None


def _core_name(found: object, triple: str | None, text: str) -> str:
    if not found or found in ("host", "native", "unknown"):
        if triple is None or _same_system(triple, CORES[host_core_name()].triple):
            return "host"
        if _same_system(triple, AARCH64):
            return "cortex-a53"
        raise TargetError("target", text, f"triple {triple} without a core", "-mcpu=...", _HINT)
    name = ALIASES.get(str(found), str(found))
    if name not in CORES:
        raise TargetError("target", text, f"core {found!r}", ", ".join(["host", *CORES]), _HINT)
    return name


def _attributes(found: object, text: str) -> tuple[str, ...]:
    if found is None or found in ("", (), []):
        return ()
    items = found.split(",") if isinstance(found, str) else found
    if not isinstance(items, list | tuple) or not all(
        isinstance(item, str) and re.fullmatch(r"[+-][^\s,+-][^\s,]*", item) for item in items
    ):
        raise TargetError("target", text, f"mattr {found!r}", "+feature or -feature, by commas", _HINT)
    return tuple(items)


def _same_system(found: str, own: str) -> bool:
    """Compare triples by machine, system and environment: vendor fields differ between toolchains, and may be left out."""
    machine, *words = found.split("-")
    own_machine, *own_words = own.split("-")
    if _MACHINES.get(machine, machine) != own_machine:
        return False
    if "none" in own_words:
        return bool(words) and set(words) <= _BARE
    return "linux" in words and words[words.index("linux") :] in (own_words, own_words[:1])
