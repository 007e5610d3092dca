"""DeriveBackward: reverse-mode differentiation of ``step``."""

from __future__ import annotations

import json
from collections.abc import Collection

import tvm
from tvm import relax

from tvm_tinytrain.passes.reverse_mode import active_variables, reverse
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild
from tvm_tinytrain.passes.state import get_layers

GRADIENTS = "tt.gradients"


@tvm.transform.module_pass(opt_level=0, name="DeriveBackward")
class DeriveBackward:
    """``step(…) → loss`` becomes ``step(…) → (loss, ∂loss/∂p, …)``; the function attribute ``tt.gradients`` names the p in order.

    ``wanted`` are parameter names, default: weights and biases of all layers. Only bindings on a path from a wanted parameter to
    the loss get adjoints, so an operator without a gradient costs nothing elsewhere; on the path it is an error. Adjoints of a
    value that is read more than once are summed. A parameter that only steps lead away from (round, sign) has no gradient.
    """

    def __init__(self, wanted: Collection[str] | None = None) -> None:
        self.wanted = wanted

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``step``."""
        func = mod["step"]
        wanted = self.wanted
        if wanted is None:
            wanted = [n for layer in get_layers(mod) for n in (layer.weight, layer.bias) if n is not None]
        targets = [p for p in func.params if p.name in set(wanted)]
        active = active_variables(func, targets)
        order = [p for p in targets if p in active]
        names: list[str] = []

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                r.keep(b)
            grads = reverse(r, mod, func, active)
            names.extend(p.name for p in order if p in grads)
            return relax.Tuple([r.look(func.body.body), *(grads[p] for p in order if p in grads)])

        mod = rebuild(mod, "step", body, attrs={"num_input": int(func.attrs["num_input"])})
        mod["step"] = mod["step"].with_attr(GRADIENTS, json.dumps(names))
        return mod
