"""NormaliseInput: the network's inputs enter as uint8 and become float32 on the device."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_tinytrain.passes.kernels.normalise import normalise
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild, shape_of
from tvm_tinytrain.passes.state import get_roles


@tvm.transform.module_pass(opt_level=0, name="NormaliseInput")
class NormaliseInput:
    """``f(x: float32)``  →  ``f(x: uint8): x' = normalise(x); …`` with x' = x · scale + offset, in front of every reader.

    All inputs alike: a quarter of the bytes. The float32 copy lives as long as its reader needs it, and readers that stream take
    the bytes themselves (`StreamBlocks`). Each reader gets a copy of its own, so that the backward pass saves the bytes, not the copy.
    """

    def __init__(self, scale: float, offset: float) -> None:
        self.scale = scale
        self.offset = offset

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites every Relax function that has inputs."""
        roles = get_roles(mod)
        for name in sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)):
            first = mod[name].params[: int(mod[name].attrs["num_input"])]
            inputs = [p for p in first if roles.get(p.name) != "label"]
            if inputs:
                mod = self._rewrite(mod, name, inputs)
        return mod

    def _rewrite(self, mod: tvm.IRModule, name: str, inputs: list[relax.Var]) -> tvm.IRModule:
        func = mod[name]
        images = {x: relax.Var(x.name, relax.TensorType(shape_of(x), "uint8")) for x in inputs}

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                for x, image in images.items():
                    if _reads(b.value, x):
                        kernel = normalise(shape_of(x), self.scale, self.offset)
                        r.env[x] = r.kernel(kernel, [image], shape_of(x), f"{x.name}_normalised")
                r.keep(b)
            return r.look(func.body.body)

        params = [images.get(p, p) for p in func.params]
        return rebuild(mod, name, body, params=params, attrs=dict(func.attrs))


def _reads(expr: relax.Expr, var: relax.Var) -> bool:
    if isinstance(expr, relax.Var):
        return bool(expr == var)
    if isinstance(expr, relax.Tuple):
        return any(_reads(f, var) for f in expr.fields)
    if isinstance(expr, relax.Call):
        return any(_reads(a, var) for a in expr.args)
    return False
