"""Losses of one sample and their gradients with respect to the network's output."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


def softmax_cross_entropy(classes: int, label_smoothing: float = 0.0) -> tirx.PrimFunc:
    """torch.nn.functional.cross_entropy of one sample.

    Arguments: logits[1, classes] float32, label[1] int32 in [0, classes), loss[1] float32.
    """

    def body(logits: Any, label: Any, loss: Any) -> None:
        peak, total, mean = _softmax_terms(logits, classes)
        with T.sblock("loss"):
            log_sum = tirx.log(total[0]) + peak[0]
            value = log_sum - logits[0, label[0]]
            if label_smoothing:
                value = f32(1.0 - label_smoothing) * value + f32(label_smoothing) * (
                    log_sum - mean[0] / f32(classes)
                )
            T.buffer_store(loss, value, [0])

    args = [Arg("logits", (1, classes)), Arg("label", (1,), "int32"), Arg("loss", (1,), role="out")]
    return make_kernel(
        "softmax_cross_entropy", {"classes": classes, "label_smoothing": label_smoothing}, args, body, macs=0
    )


def softmax_cross_entropy_grad(classes: int, label_smoothing: float = 0.0) -> tirx.PrimFunc:
    """softmax(logits) − target. Arguments: logits[1, classes], label[1] int32, dlogits[1, classes]."""

    def body(logits: Any, label: Any, dlogits: Any) -> None:
        peak, total, _ = _softmax_terms(logits, classes)
        with T.serial(classes) as j, T.sblock("grad"):
            vj = T.axis.remap("S", [j])
            hot = tirx.Select(vj == label[0], f32(1.0 - label_smoothing), f32(0.0)) + f32(
                label_smoothing / classes
            )
            T.buffer_store(dlogits, tirx.exp(logits[0, vj] - peak[0]) / total[0] - hot, [0, vj])

    args = [
        Arg("logits", (1, classes)),
        Arg("label", (1,), "int32"),
        Arg("dlogits", (1, classes), role="out"),
    ]
    spec = {"classes": classes, "label_smoothing": label_smoothing}
    return make_kernel("softmax_cross_entropy_grad", spec, args, body, macs=0)


def _softmax_terms(logits: Any, classes: int) -> tuple[Any, Any, Any]:
    """max(logits), Σ exp(logits − max), Σ logits: each one float."""
    peak, total, mean = (T.sblock_alloc_buffer((1,), "float32") for _ in range(3))
    with T.serial(classes) as j, T.sblock("peak"):
        vj = T.axis.remap("R", [j])
        with T.init():
            T.buffer_store(peak, f32(-3.4028234663852886e38), [0])
        T.buffer_store(peak, tirx.max(peak[0], logits[0, vj]), [0])
    with T.serial(classes) as j, T.sblock("total"):
        vj = T.axis.remap("R", [j])
        with T.init():
            T.buffer_store(total, f32(0.0), [0])
        T.buffer_store(total, total[0] + tirx.exp(logits[0, vj] - peak[0]), [0])
    with T.serial(classes) as j, T.sblock("mean"):
        vj = T.axis.remap("R", [j])
        with T.init():
            T.buffer_store(mean, f32(0.0), [0])
        T.buffer_store(mean, mean[0] + logits[0, vj], [0])
    return peak, total, mean


def elementwise_loss(kind: str, size: int) -> tirx.PrimFunc:
    """Mean squared error (``mse``) or binary cross-entropy with logits (``bce``), mean over ``size`` elements; or Σ output · target
    (``dot``), whose gradient is the target.

    Arguments: output[size], target[size] float32, loss[1].
    """

    def body(output: Any, target: Any, loss: Any) -> None:
        total = T.sblock_alloc_buffer((1,), "float32")
        with T.serial(size) as i, T.sblock("total"):
            vi = T.axis.remap("R", [i])
            with T.init():
                T.buffer_store(total, f32(0.0), [0])
            if kind == "mse":
                term = (output[vi] - target[vi]) * (output[vi] - target[vi])
            elif kind == "dot":
                term = output[vi] * target[vi]
            else:
                z = output[vi]
                stable = tirx.log(f32(1.0) + tirx.exp(f32(0.0) - tirx.abs(z)))
                term = tirx.max(z, f32(0.0)) - z * target[vi] + stable
            T.buffer_store(total, total[0] + term, [0])
        with T.sblock("loss"):
            T.buffer_store(loss, total[0] if kind == "dot" else total[0] / f32(size), [0])

    args = [Arg("output", (size,)), Arg("target", (size,)), Arg("loss", (1,), role="out")]
    return make_kernel(f"{kind}_loss", {"size": size}, args, body, macs=0)


def elementwise_loss_grad(kind: str, size: int) -> tirx.PrimFunc:
    """Gradient of `elementwise_loss`. Arguments: output[size], target[size], doutput[size]."""

    def body(output: Any, target: Any, grad: Any) -> None:
        with T.serial(size) as i, T.sblock("grad"):
            vi = T.axis.remap("S", [i])
            if kind == "mse":
                value = (output[vi] - target[vi]) * f32(2.0 / size)
            elif kind == "dot":
                value = target[vi]
            else:
                value = (f32(1.0) / (f32(1.0) + tirx.exp(f32(0.0) - output[vi])) - target[vi]) * f32(
                    1.0 / size
                )
            T.buffer_store(grad, value, [vi])

    args = [Arg("output", (size,)), Arg("target", (size,)), Arg("doutput", (size,), role="out")]
    return make_kernel(f"{kind}_loss_grad", {"size": size}, args, body, macs=0)
