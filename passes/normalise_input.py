"""NormaliseInput: the network's input enters as uint8 and becomes float32 on the device."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_tinytrain.errors import DTypeError
from tvm_tinytrain.passes.kernels.normalise import normalise
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, dtype_of, rebuild, shape_of


@tvm.transform.module_pass(opt_level=0, name="NormaliseInput")
class NormaliseInput:
    """``f(x: float32)``  →  ``f(x: uint8): x' = normalise(x); …`` with x' = x · scale + offset, in front of every reader.

    A quarter of the bytes; the float32 copy lives as long as its reader needs it, and readers that stream take the bytes themselves
    (`StreamBlocks`). Each reader gets a copy of its own, so that the backward pass saves the bytes, not the copy.
    """

    def __init__(self, scale: float, offset: float) -> None:
        self.scale = scale
        self.offset = offset

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites every Relax function that has an input."""
        for name in sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)):
            func = mod[name]
            if int(func.attrs["num_input"]) > 0:
                mod = self._rewrite(mod, name, func.params[0])
        return mod

    def _rewrite(self, mod: tvm.IRModule, name: str, x: relax.Var) -> tvm.IRModule:
        if dtype_of(x) != "float32":
            raise DTypeError(
                "normalise input", f"input {x.name}", dtype_of(x), "float32", "leave out input_dtype"
            )
        shape, func = shape_of(x), mod[name]
        image = relax.Var(x.name, relax.TensorType(shape, "uint8"))

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                if _reads(b.value, x):
                    kernel = normalise(shape, self.scale, self.offset)
                    r.env[x] = r.kernel(kernel, [image], shape, f"{x.name}_normalised")
                r.keep(b)
            return r.look(func.body.body)

        params = [image, *func.params[1:]]
        return rebuild(mod, name, body, params=params, attrs=dict(func.attrs))


def _reads(expr: relax.Expr, var: relax.Var) -> bool:
    if isinstance(expr, relax.Var):
        return bool(expr == var)
    if isinstance(expr, relax.Tuple):
        return any(_reads(f, var) for f in expr.fields)
    if isinstance(expr, relax.Call):
        return any(_reads(a, var) for a in expr.args)
    return False
