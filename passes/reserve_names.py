"""ReserveNames: the network leaves to the library the names that it will need itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild
from tvm_tinytrain.passes.state import (
    ADAPTERS,
    FIXED,
    get_adapters,
    get_fixed,
    get_values,
    with_adapters,
    with_fixed,
    with_renamed,
    with_values,
)

_TENSORS = re.compile(
    r"label|seed|output|loss|hyper|"
    r"plan|request|options|slot|squared_norms|"  # of a task-adaptive library
    r"(channels|inputs|delta)_[0-9]+"
)
_SYMBOLS = re.compile(  # tt_<library>_<name>
    r"init|predict|step|accumulate|apply|backward|fisher|fisher_begin|select|install|release|"
    r"(predict|accumulate|step)_(store|cached)|save|save_size|save_to|load|library|kernel_.*|kernels|params|internal"
)
_MACROS = re.compile(r"arena|label|seed|output|loss|hyper", re.IGNORECASE)  # TT_<LIBRARY>_<NAME>_BYTES
# accumulated gradient; momentum; Adam's moments, in two tensors or one, and the scales of those in 8 bits
_PREFIXES = ("", "g_", "u_", "m_", "v_", "mv_", "scales_")
_SUFFIXES = ("", "_rows")


@tvm.transform.module_pass(opt_level=0, name="ReserveNames")
class ReserveNames:
    """``main(hyper, step, g_w, w)``  →  ``main(p_hyper, p_step, p_g_w, w)``: ``hyper`` is a tensor of the library, ``step`` an entry,
    ``g_w`` will be the gradient of ``w``.

    Inputs have no symbol in C, so that they may be called like an entry, but macros in capital letters, in which they have to
    differ too. Runs when all of the network's parameters are there. The attribute ``tt.renamed`` says what was renamed.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Renames parameters of ``main``, their values, and what else names them."""
        func, values = mod["main"], get_values(mod)
        count = int(func.attrs["num_input"])
        old = [p.name for p in func.params]
        new = _free_names(old[:count], old[count:])
        if old == new:
            return mod
        fresh = {p: relax.Var(name, p.ty) for p, name in zip(func.params, new, strict=True) if p.name != name}

        def body(r: Rebuilder) -> relax.Expr:
            r.env.update(fresh)
            for b in bindings(func):
                r.keep(b)
            return r.look(func.body.body)

        params = [fresh.get(p, p) for p in func.params]
        mod = rebuild(mod, "main", body, params=params, attrs={"num_input": count})
        names = dict(zip(old[count:], new[count:], strict=True))
        if FIXED in mod.attrs:
            mod = with_fixed(mod, {names.get(n, n) for n in get_fixed(mod)})
        if ADAPTERS in mod.attrs:
            mod = with_adapters(mod, tuple(names.get(n, n) for n in get_adapters(mod)))
        mod = with_renamed(mod, [(a, b) for a, b in zip(old, new, strict=True) if a != b])
        return with_values(mod, {names.get(name, name): value for name, value in values.items()})


def is_reserved(name: str, params: Iterable[str]) -> bool:
    """Whether the library makes, or may make, a tensor or a C symbol of that name for a network with such parameters."""
    return _is_own(name) or name in _derived(params)


def _is_own(name: str) -> bool:
    return bool(_TENSORS.fullmatch(name) or _SYMBOLS.fullmatch(name))


def _derived(params: Iterable[str]) -> set[str]:
    """What training makes of parameters, under names of its own."""
    return {f"{a}{name}{b}" for name in params for a in _PREFIXES for b in _SUFFIXES if a or b}


def _free_names(inputs: Sequence[str], params: Sequence[str]) -> list[str]:
    """A name for each input and parameter that neither is nor will be another thing's name."""
    count, names = len(inputs), [*inputs, *params]
    while (place := _first_taken(names, count)) is not None:
        new = f"p_{names[place]}"
        while new in names:
            new = f"p_{new}"
        names[place] = new
    return names


def _first_taken(names: Sequence[str], inputs: int) -> int | None:
    """The first place of a name that something else needs; of two equal ones the later, so that inputs keep theirs."""
    derived = _derived(names[inputs:])
    seen: set[str] = set()
    macros: set[str] = set()
    for place, name in enumerate(names):
        if name in derived or name in seen or _TENSORS.fullmatch(name):
            return place
        if place < inputs and (_MACROS.fullmatch(name) or name.upper() in macros):
            return place
        if place >= inputs and _SYMBOLS.fullmatch(name):
            return place
        seen.add(name)
        macros.add(name.upper())
    return None
