"""FuseUpdate: the optimizer sits in the gradient kernel, so that no gradient outlives its use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.config import SGD, Adam, AdamW, Optimizer
from tvm_tinytrain.own_tensors import HYPER
from tvm_tinytrain.passes.derive_backward import GRADIENTS
from tvm_tinytrain.passes.kernels.bias_grad import advance, apply_update
from tvm_tinytrain.passes.kernels.block_update import MOMENTS, apply_block_update, words_of
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.parameter_grads import is_parameter_grad, remake
from tvm_tinytrain.passes.kernels.row_update import row_update
from tvm_tinytrain.passes.kernels.sinks import HYPER_SIZE, Accumulate, AdamUpdate, SGDUpdate, Sink
from tvm_tinytrain.passes.liveness import liveness
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, rebuild, shape_of, use_counts
from tvm_tinytrain.passes.state import get_roles, get_values, new_tensor, with_roles, with_values


@dataclass(frozen=True)
class _Target:
    """One trained parameter: its variable, channel lists, and the tensors that its update keeps."""

    param: relax.Var
    lists: tuple[relax.Var, ...]
    has_channels: bool
    has_inputs: bool
    rows: bool
    kept: tuple[relax.Var, ...]


@tvm.transform.module_pass(opt_level=0, name="FuseUpdate")
class FuseUpdate:
    """``g = weight_grad(x, dy); return loss, g``  →  ``w' = weight_grad_update(x, dy, w, state…, hyper) in place; return loss, w'``.

    With ``accumulate`` the function becomes ``accumulate`` (gradients are added to tensors ``g_<param>``) and a second one, ``apply``,
    updates the weights from them and clears them. A gradient that is a sum of several kernels, or that something else reads too (the
    adjoint of a sum is that of both operands), is applied by a kernel of its own; so is
    one whose update reads all of a block first (moments in 8 bits), unless ``by_rows``: then trained rows are made and updated one
    by one in a single kernel. A parameter that is read again behind its gradient is updated after that.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        accumulate: bool = False,
        by_rows: bool = False,
        lr_scales: dict[str, float] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.by_rows = by_rows
        self.lr_scales = lr_scales or {}

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``step`` (and with ``accumulate`` splits it)."""
        func = mod["step"]
        by_name = {p.name: p for p in func.params}
        values, roles = get_values(mod), get_roles(mod)
        described = json.loads(str(func.attrs[GRADIENTS]))
        defs = {b.var: b.value for b in bindings(func)}
        result = func.body.body
        while result in defs:
            result = defs[result]
        targets: dict[relax.Var, list[_Target]] = {}  # two parameters that are added up have one gradient
        new_params: list[relax.Var] = []

        def tensor(name: str, value: np.ndarray, role: str) -> relax.Var:
            new_params.append(new_tensor(values, roles, name, value, role))
            return new_params[-1]

        hyper_value = np.array([self.optimizer.lr, 0.0, 0.0, 0.0], dtype=np.float32)
        assert hyper_value.size == HYPER_SIZE
        hyper = tensor(HYPER, hyper_value, "state")
        for entry, grad in zip(described, result.fields[1:], strict=True):
            name = entry["param"]
            roles[name] = "param"
            kept = tuple(
                tensor(n, np.zeros(shape, dtype), "grad" if n.startswith("g_") else "state")
                for n, shape, dtype in kept_tensors(
                    self.optimizer, name, shape_of(grad), accumulate=self.accumulate
                )
            )
            lists = tuple(by_name[entry[k]] for k in ("channels", "inputs") if entry[k])
            target = _Target(
                by_name[name],
                lists,
                bool(entry["channels"]),
                bool(entry["inputs"]),
                bool(entry.get("rows")),
                kept,
            )
            targets.setdefault(grad, []).append(target)

        uses, reads = use_counts(func), liveness(func).reads

        def body(r: Rebuilder) -> relax.Expr:
            now = hyper
            outputs: list[relax.Expr] = []
            waiting: dict[int, list[tuple[relax.Var, _Target]]] = {}
            for index, b in enumerate(bindings(func)):
                made = targets.get(b.var, [])
                own = self._sink(made[0].param) if made else None
                if now is hyper and isinstance(own, AdamUpdate) and not self.accumulate:
                    # here and not in front: the forward pass may end in an error, or begin at a cached sample
                    now = r.kernel_inplace(advance(own), [hyper], [0], "hyper_now")
                # a parameter that is some layer's input is read once more, for the gradient of that layer's weight
                due = [index if self.accumulate else max([index, *reads.get(t.param, ())]) for t in made]
                alone = uses[b.var] == 1 and due == [index]  # one parameter's, and nobody else reads it
                kernel = self._fused(mod, b.value, made[0]) if alone else None
                if kernel is not None:
                    args = [r.look(a) for a in b.value.args[1].fields]
                    outputs.append(_call(r, kernel, args, made[0], self._taker(made[0]), now))
                elif not isinstance(b.value, relax.Tuple):
                    r.keep(b)
                    for target, place in zip(made, due, strict=True):
                        waiting.setdefault(place, []).append((b.var, target))
                for grad, target in waiting.pop(index, ()):
                    outputs.append(self._apply(r, target, r.look(grad), self._taker(target), now))
            return relax.Tuple([r.look(result.fields[0]), *outputs])

        attrs = {"num_input": int(func.attrs["num_input"])}
        entry_name = "accumulate" if self.accumulate else "step"
        mod = rebuild(mod, entry_name, body, params=[*func.params, *new_params], source="step", attrs=attrs)
        if self.accumulate:
            del mod["step"]
            mod = self._apply_function(mod, [t for shared in targets.values() for t in shared], hyper)
        keep = ["predict", "accumulate", "apply"] if self.accumulate else ["predict", "step"]
        mod = relax.transform.DeadCodeElimination(keep)(mod)
        return with_roles(with_values(mod, values), roles)

    def _taker(self, target: _Target) -> Sink:
        """What takes a gradient where it is made."""
        return Accumulate() if self.accumulate else self._sink(target.param)

    def _fused(self, mod: tvm.IRModule, value: relax.Expr, target: _Target) -> Any:
        """The gradient kernel that hands what it makes to its sink itself, None where there is none."""
        sink = self._taker(target)
        if not _needs_whole_blocks(sink):
            return _with_sink(mod, value, sink, target.rows)
        return _by_rows(mod, value, sink) if self.by_rows and target.rows else None

    def _sink(self, param: relax.Var) -> Sink:
        o, scale = self.optimizer, self.lr_scales.get(param.name, 1.0)
        if isinstance(o, SGD):
            return SGDUpdate(o.momentum, o.weight_decay, o.nesterov, scale)
        state = _state_of(o, len(shape_of(param)))
        return AdamUpdate(o.betas[0], o.betas[1], o.eps, o.weight_decay, isinstance(o, AdamW), scale, state)

    def _apply(
        self,
        r: Rebuilder,
        target: _Target,
        grad: relax.Expr,
        sink: Sink,
        hyper: relax.Expr,
        *,
        clears: bool = False,
    ) -> relax.Expr:
        """Hands a gradient that exists as a tensor to its sink.

        Only an accumulated one is cleared: any other may be the adjoint of a sum, which the layers in front read too.
        """
        if isinstance(sink, Accumulate):
            kernel = apply_update(shape_of(grad), sink, clears=False)
            return r.kernel_inplace(kernel, [grad, target.kept[0]], [1])
        shape = shape_of(target.param)
        vectors = () if target.rows else target.lists
        sizes = [shape_of(v)[0] for v in vectors]
        channels = sizes.pop(0) if sizes and target.has_channels else None
        make: Any = apply_block_update if _needs_whole_blocks(sink) else apply_update
        inputs = sizes.pop(0) if sizes else None
        kernel = make(shape, sink, channels=channels, inputs=inputs, clears=clears)
        args = [grad, *vectors, target.param, *target.kept, hyper]
        first = 1 + len(vectors)
        inplace = [*([0] if clears else []), *range(first, len(args) - 1)]
        out = r.kernel_inplace(kernel, args, inplace)
        return out if len(inplace) == 1 else r.emit(relax.TupleGetItem(out, inplace.index(first)))

    def _apply_function(self, mod: tvm.IRModule, targets: list[_Target], hyper: relax.Var) -> tvm.IRModule:
        """Adds ``apply``: every accumulated gradient goes into its weight and is cleared."""
        sinks = [self._sink(t.param) for t in targets]
        params = [v for t in targets for v in (t.param, *t.lists, *t.kept)] + [hyper]
        unique = list(dict.fromkeys(params))

        def body(r: Rebuilder) -> relax.Expr:
            now: relax.Expr = hyper
            if isinstance(sinks[0], AdamUpdate):
                now = r.kernel_inplace(advance(sinks[0]), [hyper], [0], "hyper_now")
            outs = []
            for t, sink in zip(targets, sinks, strict=True):
                lean = _Target(t.param, t.lists, t.has_channels, t.has_inputs, t.rows, t.kept[1:])
                outs.append(self._apply(r, lean, t.kept[0], sink, now, clears=True))
            return relax.Tuple(outs)

        return rebuild(mod, "apply", body, params=unique, source="accumulate", attrs={"num_input": 0})


def kept_tensors(
    optimizer: Optimizer, param: str, shape: tuple[int, ...], *, accumulate: bool
) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of what training keeps for a parameter: its accumulated gradient, then the optimizer's state.

    ``shape`` is the gradient's: that of the trained rows and columns.
    """
    gradient = [(f"g_{param}", shape, "float32")] if accumulate else []
    if isinstance(optimizer, SGD):
        return [*gradient, *([(f"u_{param}", shape, "float32")] if optimizer.momentum else [])]
    state = _state_of(optimizer, len(shape))
    if state == "bfloat16":
        return [*gradient, (f"mv_{param}", shape, "int32")]
    if state == "int8":
        words = (shape[0], words_of(shape))
        return [
            *gradient,
            (f"mv_{param}", words, "int32"),
            (f"scales_{param}", (shape[0], MOMENTS), "float32"),
        ]
    return [*gradient, *((f"{name}_{param}", shape, "float32") for name in "mv")]


def _state_of(optimizer: Adam | AdamW, rank: int) -> str:
    """What the moments of a parameter are kept in: a vector has no blocks."""
    return "float32" if optimizer.state == "int8" and rank < 2 else optimizer.state


def _needs_whole_blocks(sink: Sink) -> bool:
    """Whether an update reads all gradients of a block before it changes the first weight."""
    return isinstance(sink, AdamUpdate) and sink.state == "int8"


def _with_sink(mod: tvm.IRModule, value: relax.Expr, sink: Sink, rows: bool) -> Any:
    """The gradient kernel with another sink, or None where the gradient is not made by one."""
    gv = callee(value)
    if gv is None:
        return None
    if not is_parameter_grad(mod[gv]):
        return None
    spec = kernel_spec(mod[gv])
    return remake(mod[gv], sink, channels=spec["channels"], inputs=spec.get("inputs"), compact_weight=rows)


def _by_rows(mod: tvm.IRModule, value: relax.Expr, sink: Sink) -> Any:
    """The gradient kernel that updates row by row, or None where there is none of its kind."""
    gv = callee(value)
    if gv is None or not is_parameter_grad(mod[gv]) or not isinstance(sink, AdamUpdate):
        return None
    return row_update(mod[gv], sink)


def _call(
    r: Rebuilder, kernel: Any, args: list[relax.Expr], target: _Target, sink: Sink, hyper: relax.Expr
) -> relax.Expr:
    if isinstance(sink, Accumulate):
        return r.kernel_inplace(kernel, [*args, target.kept[0]], [len(args)])
    every = [*args, target.param, *target.kept, hyper]
    inplace = list(range(len(args), len(every) - 1))
    out = r.kernel_inplace(kernel, every, inplace)
    return out if len(inplace) == 1 else r.emit(relax.TupleGetItem(out, 0))
