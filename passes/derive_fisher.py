"""DeriveFisher: the function that measures which channels a task cares about."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.kernels.fisher import fisher_reduce
from tvm_tinytrain.passes.reverse_mode import active_variables, reverse
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, rebuild, shape_of
from tvm_tinytrain.passes.state import (
    Layer,
    get_layers,
    get_roles,
    get_values,
    new_tensor,
    with_roles,
    with_values,
)


@tvm.transform.module_pass(opt_level=0, name="DeriveFisher")
class DeriveFisher:
    """Adds ``fisher(input, label, parameters…, delta_<layer>…) → (loss, delta…)``.

    ``delta_<layer>[channels]`` grows by (Σ a·g)² for each output channel of each candidate layer, a being the layer's activation (after
    its clamp) and g the loss's adjoint there. The backward pass ends at the earliest candidate's output. Runs on the loss-only
    ``step``, before DeriveBackward.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self.candidates = tuple(candidates)

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Adds ``fisher``."""
        func = mod["step"]
        layers = get_layers(mod)
        if not self.candidates or not set(self.candidates) <= {layer.id for layer in layers}:
            raise PlanError(
                "derive fisher",
                "candidates",
                list(self.candidates),
                f"layer ids from 0 to {len(layers) - 1}",
                "see module.report()",
            )
        chosen = {layer.weight: layer for layer in layers if layer.id in self.candidates}
        outputs = _outputs(func, chosen)
        values, roles = get_values(mod), get_roles(mod)
        deltas = {}
        for layer in chosen.values():
            name = f"delta_{layer.id}"
            zeros = np.zeros(layer.channels, np.float32)
            deltas[layer.id] = new_tensor(values, roles, name, zeros, "fisher")
        active = active_variables(func, list(outputs))

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                r.keep(b)
            now: dict[int, relax.Expr] = dict(deltas)

            def watcher(layer: Layer) -> object:
                def reduce(value: relax.Expr, adjoint: relax.Expr) -> None:
                    shape = shape_of(value)
                    outer, inner = (1, math.prod(shape[2:])) if layer.kind != "linear" else (shape[0], 1)
                    flat = (outer, layer.channels, inner)
                    args = [r.emit(relax.op.reshape(v, flat)) for v in (value, adjoint)]
                    kernel = fisher_reduce(*flat)
                    now[layer.id] = r.kernel_inplace(kernel, [*args, now[layer.id]], [2])

                return reduce

            watch = {var: watcher(layer) for var, layer in outputs.items()}
            reverse(r, mod, func, active, watch)  # type: ignore[arg-type]
            return relax.Tuple([r.look(func.body.body), *now.values()])

        params = [*func.params, *deltas.values()]
        attrs = {"num_input": int(func.attrs["num_input"])}
        mod = rebuild(mod, "fisher", body, params=params, source="step", attrs=attrs)
        return with_roles(with_values(mod, values), roles)


def _outputs(func: relax.Function, chosen: dict[str, Layer]) -> dict[relax.Var, Layer]:
    """The result of each candidate layer's kernel call."""
    found = {}
    for b in bindings(func):
        if callee(b.value) is None:
            continue
        for operand in b.value.args[1].fields:
            if isinstance(operand, relax.Var) and operand.name in chosen:
                found[b.var] = chosen[operand.name]
    return found
