"""AppendLoss: the training function begins as the prediction with a loss behind it."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax

from tvm_tinytrain.config import MSE, BinaryCrossEntropy, CrossEntropy, Loss, Prototypical
from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.own_tensors import SEED
from tvm_tinytrain.passes.kernels import losses
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild, shape_of
from tvm_tinytrain.passes.state import check_new, get_roles, with_roles


@tvm.transform.module_pass(opt_level=0, name="AppendLoss")
class AppendLoss:
    """Adds function ``step(input, label, parameters…) → loss`` with the bindings of ``predict``.

    ``predict: y = f(x)``  →  ``step: y = f(x); loss = L(y, label)``. The label is int32[1] for cross-entropy and float32 of the
    output's shape for the elementwise losses. With `Prototypical` it is ``seed``, the gradient of the loss with respect to the
    output, and the loss of one sample is output · seed. Cross-entropy asks for two classes at least: the probability of a single one is
    1, whatever the network says, and nothing is learnt.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Adds ``step``."""
        func = mod["predict"]
        inputs = int(func.attrs["num_input"])
        out_shape = shape_of(func.body.body)
        label_shape, dtype, kernel = self._kernel(out_shape)
        name = SEED if isinstance(self.loss, Prototypical) else "label"
        check_new(name, {p.name for p in func.params})
        label = relax.Var(name, relax.TensorType(label_shape, dtype))

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                r.keep(b)
            output = r.look(func.body.body)
            args: list[Any] = [output, label]
            if not isinstance(self.loss, CrossEntropy):
                args = [r.emit(relax.op.reshape(a, (math.prod(out_shape),))) for a in args]
            return r.kernel(kernel, args, (1,), "loss")

        params = [*func.params[:inputs], label, *func.params[inputs:]]
        attrs = {"num_input": inputs + 1}
        roles = get_roles(mod) | {name: "label"} | {p.name: "input" for p in func.params[:inputs]}
        return with_roles(rebuild(mod, "step", body, params=params, source="predict", attrs=attrs), roles)

    def _kernel(self, out: tuple[int, ...]) -> tuple[tuple[int, ...], str, Any]:
        if isinstance(self.loss, CrossEntropy):
            if len(out) != 2 or out[0] != 1:
                raise ShapeError(
                    "append loss",
                    "network output",
                    f"shape {out}",
                    "[1, classes]",
                    "end the network with a classifier",
                )
            if out[1] < 2:
                found, hint = "one class", "take BinaryCrossEntropy() with targets 0 and 1, or MSE()"
                raise ShapeError("append loss", "network output", found, "[1, 2 or more classes]", hint)
            return (1,), "int32", losses.softmax_cross_entropy(out[1], self.loss.label_smoothing)
        kind = {MSE: "mse", BinaryCrossEntropy: "bce", Prototypical: "dot"}[type(self.loss)]
        return out, "float32", losses.elementwise_loss(kind, math.prod(out))
