"""ReserveNames: parameters leave to the library the names that it will need itself."""

from __future__ import annotations

import re
from collections.abc import Collection

import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild
from tvm_tinytrain.passes.state import get_values, with_values

_OWN = re.compile(
    r"init|predict|step|accumulate|apply|backward|fisher|select|library|kernels|params|internal|"
    r"label|seed|output|loss|hyper|kernel_.*|(channels|inputs|table)_\d+"
)
_PREFIXES = ("g_", "u_", "m_", "v_")  # accumulated gradient, momentum, Adam's moments
_SUFFIXES = ("_rows", "_rstd", "_shift")


@tvm.transform.module_pass(opt_level=0, name="ReserveNames")
class ReserveNames:
    """``main(x, step, g_w, w)``  →  ``main(x, p_step, p_g_w, w)``: ``step`` is an entry, ``g_w`` will be the gradient of ``w``.

    The network's inputs keep their names; a parameter that is called like one of them gets another.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Renames parameters of ``main`` and their values."""
        func, values = mod["main"], get_values(mod)
        inputs = int(func.attrs["num_input"])
        names = _free_names([p.name for p in func.params[inputs:]], {p.name for p in func.params[:inputs]})
        if all(old == new for old, new in names.items()):
            return mod
        fresh = {p: relax.Var(names[p.name], p.ty) for p in func.params[inputs:] if names[p.name] != p.name}

        def body(r: Rebuilder) -> relax.Expr:
            r.env.update(fresh)
            for b in bindings(func):
                r.keep(b)
            return r.look(func.body.body)

        params = [fresh.get(p, p) for p in func.params]
        mod = rebuild(mod, "main", body, params=params, attrs={"num_input": inputs})
        return with_values(mod, {names.get(name, name): value for name, value in values.items()})


def _free_names(params: list[str], taken: Collection[str]) -> dict[str, str]:
    """A name for each of ``params`` that neither is nor will be another thing's name."""
    names: dict[str, str] = {}
    derived = {f"{a}{name}{b}" for name in params for a, b in _AFFIXES}
    used = {*taken, *params}
    for name in params:
        new = name
        while _OWN.fullmatch(new) or new in derived or new in taken or (new != name and new in used):
            new = f"p_{new}"
        names[name] = new
        used.add(new)
    return names


_AFFIXES = [
    *((prefix, suffix) for prefix in _PREFIXES for suffix in ("", "_rows")),
    *(("", s) for s in _SUFFIXES),
]
