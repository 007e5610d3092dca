"""PruneBackward: what the plan does not select is not computed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.derive_backward import GRADIENTS
from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.passes.kernels.parameter_grads import is_parameter_grad, remake
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, op_name, operands, rebuild, shape_of
from tvm_tinytrain.passes.state import (
    Layer,
    get_layers,
    get_roles,
    get_values,
    new_tensor,
    with_roles,
    with_values,
)
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan

_LAYERS = ("conv2d", "conv2d_transpose", "linear")


@dataclass(frozen=True)
class Selection:
    """Which rows (output channels) and columns (input channels) of a parameter's gradient are wanted; None means all."""

    channels: relax.Var | None
    inputs: relax.Var | None


@tvm.transform.module_pass(opt_level=0, name="PruneBackward")
class PruneBackward:
    """Keeps the gradients of the plan's layers, computed for the plan's channels only; what then is dead disappears.

    ``dw[co, …] = weight_grad(x, dy)``  →  ``dw[k, …] = weight_grad(x, dy, channels)`` with the constant list ``channels_<layer>``;
    the chain of input gradients ends by itself at the earliest selected layer, because nothing reads what is in front of it.
    ``also`` names parameters that belong to no layer and are trained whole; ``always_lists`` gives even a layer that is trained
    whole its list.
    """

    def __init__(self, plan: UpdatePlan, *, also: Sequence[str] = (), always_lists: bool = False) -> None:
        self.plan = plan
        self.also = tuple(also)
        self.always_lists = always_lists

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``step`` and its attribute ``tt.gradients``: per gradient the parameter and the names of its lists."""
        layers = {layer.id: layer for layer in get_layers(mod)}
        check_plan(self.plan, mod, self.also, always_lists=self.always_lists)
        values, roles = get_values(mod), get_roles(mod)
        lists: list[relax.Var] = []
        wanted: dict[str, Selection] = {}

        def make_list(name: str, selected: tuple[int, ...] | None, size: int) -> relax.Var | None:
            if selected is None or (len(selected) == size and not self.always_lists):
                return None
            lists.append(new_tensor(values, roles, name, np.asarray(selected, dtype=np.int32), "list"))
            return lists[-1]

        for update in self.plan.layers:
            layer = layers[update.layer]
            channels = make_list(f"channels_{layer.id}", update.outputs, layer.channels)
            if update.weight:
                wanted[layer.weight] = Selection(
                    channels, make_list(f"inputs_{layer.id}", update.inputs, layer.inputs)
                )
            if update.bias and layer.bias is not None:
                wanted[layer.bias] = Selection(channels, None)

        for name in self.also:
            wanted[name] = Selection(None, None)
        func = mod["step"]
        names: list[str] = json.loads(str(func.attrs[GRADIENTS]))
        _check_gradients(set(wanted) - set(names), layers.values())
        result = _resolve(func, func.body.body)
        kept = [n for n in names if n in wanted]

        def body(r: Rebuilder) -> relax.Expr:
            defs = {b.var: b.value for b in bindings(func)}
            sliced = {}
            for name, grad in zip(names, result.fields[1:], strict=True):
                if name in wanted and wanted[name] != Selection(None, None):
                    sliced.update(_producers(mod, defs, grad, wanted[name]))
            for b in bindings(func):
                if b.var in sliced:
                    r.env[b.var] = _slice(r, mod, b, sliced[b.var])
                elif not isinstance(b.value, relax.Tuple):
                    r.keep(b)
            grads = [r.look(g) for n, g in zip(names, result.fields[1:], strict=True) if n in wanted]
            return relax.Tuple([r.look(result.fields[0]), *grads])

        described = [
            {"param": n, "channels": _name(wanted[n].channels), "inputs": _name(wanted[n].inputs)}
            for n in kept
        ]
        attrs = {"num_input": int(func.attrs["num_input"]), GRADIENTS: json.dumps(described)}
        mod = rebuild(mod, "step", body, params=[*func.params, *lists], attrs=attrs)
        mod = relax.transform.DeadCodeElimination(["predict", "step"])(mod)
        return with_roles(with_values(mod, values), roles)


def check_plan(
    plan: UpdatePlan, mod: tvm.IRModule, also: Sequence[str] = (), *, always_lists: bool = False
) -> None:
    """Raises PlanError where the plan names a layer or channel that the network does not have, or channels of a shared parameter."""
    layers = {layer.id: layer for layer in get_layers(mod)}
    if not plan.layers and not also:
        raise PlanError(
            "prune backward", "update plan", "no layers", "at least one layer", "select a layer to train"
        )
    for update in plan.layers:
        layer = layers.get(update.layer)
        if layer is None:
            raise PlanError(
                "prune backward",
                f"layer {update.layer}",
                "not in the network",
                f"0 to {len(layers) - 1}",
                "see module.report()",
            )
        if layer.bias is None and not update.weight:
            raise PlanError(
                "prune backward", f"layer {layer.id} ({layer.weight})", "only a bias to train",
                "its weight: the layer has no bias", "train the weight or leave the layer out of the plan",
            )  # fmt: skip
        for what, chosen, size in (
            ("channel", update.outputs, layer.channels),
            ("input channel", update.inputs, layer.inputs),
        ):
            if chosen and max(chosen) >= size:
                raise PlanError(
                    "prune backward", f"layer {layer.id} ({layer.weight})", f"{what} {max(chosen)}", f"0 to {size - 1}",
                    "choose existing channels",
                )  # fmt: skip
    _check_shared(plan, layers, _readers(mod), also, always_lists)


def _check_shared(
    plan: UpdatePlan,
    layers: dict[int, Layer],
    readers: dict[str, set[str]],
    also: Sequence[str],
    always_lists: bool,
) -> None:
    """Raises PlanError where a parameter is trained in part that more than the layer's own operators read.

    The rows of such a parameter are no layer's own: another reader would need them too, or asks for other ones.
    """
    for update in plan.layers:
        layer = layers[update.layer]
        rows = always_lists or len(update.outputs) < layer.channels
        columns = always_lists or (update.inputs is not None and len(update.inputs) < layer.inputs)
        shared = []
        if update.weight and (rows or columns) and readers[layer.weight] != {layer.weight}:
            shared.append(layer.weight)
        if update.bias and layer.bias is not None and rows:
            if readers[layer.bias] != {layer.weight}:
                shared.append(layer.bias)
            shared.extend(layer.other_biases)
        shared = [name for name in shared if name not in also]
        if not shared:
            continue
        if always_lists:
            hint = "leave the layer out of TaskAdaptive(candidates=...)"
        elif layer.weight in shared:
            hint = "train all its channels, or leave the layer out of the plan"
        else:
            hint = "train all its channels, or its weight only (LayerUpdate with bias=False), or leave it out of the plan"
        raise PlanError(
            "prune backward", f"layer {layer.id} ({layer.weight})", f"single channels of the shared {', '.join(shared)}",
            "all channels: a shared parameter can only be trained whole", hint,
        )  # fmt: skip


def _readers(mod: tvm.IRModule) -> dict[str, set[str]]:
    """{parameter: what reads it in ``predict``}: a layer, called by its weight, or an operator."""
    weights = {layer.weight for layer in get_layers(mod)}
    readers: dict[str, set[str]] = {}
    for b in bindings(mod["predict"]):
        args = operands(b.value)
        names = [a.name if isinstance(a, relax.Var) else None for a in args]
        gv = callee(b.value)
        is_layer = gv is not None and kernel_kind(mod[gv]) in _LAYERS and names[1] in weights
        for position, name in enumerate(names):
            if name is not None:
                by_layer = is_layer and position in (1, 2)  # x, weight, bias
                readers.setdefault(name, set()).add(str(names[1]) if by_layer else op_name(b.value))
    return readers


def _check_gradients(missing: Collection[str], layers: Iterable[Layer]) -> None:
    """Raises PlanError where ``missing``, trained parameters without a gradient, are any."""
    if not missing:
        return
    owners = {name: f"layer {la.id} ({la.weight})" for la in layers for name in (la.weight, la.bias) if name}
    raise PlanError(
        "prune backward",
        ", ".join(sorted({owners.get(name, name) for name in missing})),
        "no gradient: only steps (round, sign, comparisons) lead to the loss, or it is a frozen statistic",
        "parameters with which the loss changes smoothly",
        "leave it out of what is trained",
    )


def full_update(layer: Layer) -> LayerUpdate:
    """All channels of a layer, with its bias if it has one."""
    return LayerUpdate(layer.id, tuple(range(layer.channels)), bias=layer.bias is not None)


def _name(var: relax.Var | None) -> str | None:
    return None if var is None else str(var.name)


def _resolve(func: relax.Function, expr: relax.Expr) -> relax.Expr:
    """The tuple behind the function's result."""
    defs = {b.var: b.value for b in bindings(func)}
    while isinstance(expr, relax.Var) and expr in defs:
        expr = defs[expr]
    return expr


def _producers(
    mod: tvm.IRModule, defs: dict[relax.Var, relax.Expr], grad: relax.Expr, selection: Selection
) -> dict[relax.Var, Selection]:
    """The gradient kernels behind ``grad`` (several where a weight is used several times), each with its selection."""
    value = defs[grad]
    if op_name(value) == "relax.add":
        left, right = (_producers(mod, defs, a, selection) for a in value.args)
        return left | right
    gv = callee(value)
    if gv is not None and is_parameter_grad(mod[gv]):
        return {grad: selection}
    raise PlanError(
        "prune backward",
        f"gradient {grad.name}",
        op_name(value),
        "a weight- or bias-gradient kernel",
        "report this network",
    )


def _slice(r: Rebuilder, mod: tvm.IRModule, b: relax.VarBinding, selection: Selection) -> relax.Expr:
    if selection.channels is None and selection.inputs is None:
        return r.emit(r.look(b.value), b.var.name)
    kernel = mod[callee(b.value)]
    lists = [v for v in (selection.channels, selection.inputs) if v is not None]
    channels, inputs = (None if v is None else shape_of(v)[0] for v in (selection.channels, selection.inputs))
    args = [r.look(a) for a in b.value.args[1].fields]
    full = shape_of(b.var)
    shape = (channels or full[0], *((inputs or full[1],) if len(full) > 1 else ()), *full[2:])
    func = remake(kernel, channels=channels, inputs=inputs)
    return r.kernel(func, [*args, *lists], shape, b.var.name)
