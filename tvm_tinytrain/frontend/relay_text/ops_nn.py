"""Relay's ``nn`` operators as Relax. Defaults are those of Apache TVM 0.19, ``include/tvm/relay/attrs/nn.h``."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from tvm_tinytrain.frontend.relay_text.registry import OpCall, Value, operator

_R = relax.op.nn


def _convolution(call: OpCall, axes: str) -> dict[str, Any]:
    """What all convolutions read."""
    rank = len(axes)
    call.layout("data_layout", f"NC{axes}")
    call.layout("out_layout", f"NC{axes}")
    call.text("out_dtype", "", ("", "float32", "void"))
    call.ignore("channels", "kernel_size")
    return {
        "data": call.tensor(0),
        "weight": call.parameter(1),
        "strides": call.spatial("strides", (1,) * rank),
        "padding": call.ints("padding", (0,) * rank),
        "dilation": call.spatial("dilation", (1,) * rank),
        "groups": call.integer("groups", 1),
    }


@operator("nn.conv2d")
def conv2d(call: OpCall) -> Value:
    """NCHW with OIHW weights."""
    call.layout("kernel_layout", "OIHW")
    return _R.conv2d(**_convolution(call, "HW"))


@operator("nn.conv1d")
def conv1d(call: OpCall) -> Value:
    """NCW with OIW weights."""
    call.layout("kernel_layout", "OIW")
    return _R.conv1d(**_convolution(call, "W"))


@operator("nn.conv2d_transpose")
def conv2d_transpose(call: OpCall) -> Value:
    """NCHW with IOHW weights."""
    call.layout("kernel_layout", "IOHW")
    output_padding = call.spatial("output_padding", (0, 0))
    return _R.conv2d_transpose(**_convolution(call, "HW"), output_padding=output_padding)


@operator("nn.dense")
def dense(call: OpCall) -> Value:
    """x[…, k] · weight[n, k]ᵀ."""
    call.ignore("units")
    call.text("out_dtype", "", ("", "float32", "void"))
    return relax.op.matmul(call.tensor(0), relax.op.permute_dims(call.parameter(1), [1, 0]))


@operator("nn.matmul", "nn.batch_matmul")
def matmul(call: OpCall) -> Value:
    """a · b of matrices, or of stacks of them. TVM 0.7's ``nn.batch_matmul``, which has no attributes, is a · bᵀ; the text does not
    say which version it is of, and is read as that of 0.8 and later."""
    call.ignore("units")
    call.text("out_dtype", "", ("", "float32", "void"))
    operands = [call.tensor(0), call.tensor(1)]
    for index, name in enumerate(("transpose_a", "transpose_b")):
        if call.flag(name):
            rank = len(call.shape(index))
            axes = [*range(rank - 2), rank - 1, rank - 2]
            operands[index] = relax.op.permute_dims(operands[index], axes)
    return relax.op.matmul(*operands)


@operator("nn.bias_add")
def bias_add(call: OpCall) -> Value:
    """x + bias along ``axis``."""
    x, bias, rank = call.tensor(0), call.parameter(1), len(call.shape(0))
    axis = call.axis("axis", call.integer("axis", 1), rank)
    if axis < rank - 1:
        bias = relax.op.reshape(bias, [1] * axis + [call.shape(1)[0]] + [1] * (rank - 1 - axis))
    return relax.op.add(x, bias)


@operator("nn.relu")
def relu(call: OpCall) -> Value:
    """max(x, 0)."""
    return _R.relu(call.tensor(0))


@operator("nn.leaky_relu")
def leaky_relu(call: OpCall) -> Value:
    """x where positive, else alpha · x."""
    return _R.leakyrelu(call.tensor(0), call.number("alpha", 0.25))


@operator("nn.prelu")
def prelu(call: OpCall) -> Value:
    """x where positive, else alpha[channel] · x."""
    return _R.prelu(call.tensor(0), call.parameter(1), call.integer("axis", 1))


@operator("nn.softmax", "nn.fast_softmax")
def softmax(call: OpCall) -> Value:
    """Along ``axis``."""
    return _R.softmax(call.tensor(0), call.integer("axis", -1))


@operator("nn.log_softmax")
def log_softmax(call: OpCall) -> Value:
    """Along ``axis``."""
    return _R.log_softmax(call.tensor(0), call.integer("axis", -1))


@operator("nn.dropout")
def dropout(call: OpCall) -> Value:
    """The identity: these are inference graphs. Relay's second result, the mask, has no value."""
    call.ignore("rate")
    return (call.tensor(0), None)


def _normalization(call: OpCall, operands: int) -> dict[str, Any]:
    names = ("gamma", "beta", "moving_mean", "moving_var")[: operands - 1]
    values = {name: call.parameter(i + 1) for i, name in enumerate(names)}
    values |= {"center": call.flag("center", True), "scale": call.flag("scale", True)}
    return {"data": call.tensor(0), "epsilon": call.number("epsilon", 1e-5), **values}


@operator("nn.batch_norm")
def batch_norm(call: OpCall) -> Value:
    """With its stored statistics; a tuple of the result and these statistics."""
    return _R.batch_norm(**_normalization(call, 5), axis=call.integer("axis", 1), training=False)


@operator("nn.layer_norm")
def layer_norm(call: OpCall) -> Value:
    """Over ``axis``."""
    axis = call.axis("axis", call.integer("axis", -1), len(call.shape(0)))
    return _R.layer_norm(**_normalization(call, 3), axes=[axis])


def _channel_and_rest(call: OpCall) -> tuple[int, list[int]]:
    """The channel axis, and all others but the batch's."""
    rank = len(call.shape(0))
    axis = call.axis("axis", call.integer("axis", 1), rank)
    return axis, [a for a in range(1, rank) if a != axis]


@operator("nn.group_norm")
def group_norm(call: OpCall) -> Value:
    """Over the channels of a group and all axes behind them."""
    axis, axes = _channel_and_rest(call)
    options = {"num_groups": call.integer("num_groups"), "channel_axis": axis, "axes": axes}
    return _R.group_norm(**_normalization(call, 3), **options)


@operator("nn.instance_norm")
def instance_norm(call: OpCall) -> Value:
    """Over all axes behind the channels."""
    axis, axes = _channel_and_rest(call)
    return _R.instance_norm(**_normalization(call, 3), channel_axis=axis, axes=axes)


def _pool(call: OpCall, function: Any, axes: str, average: bool = False) -> Value:
    rank = len(axes)
    call.layout("layout", f"NC{axes}")
    call.layout("out_layout", f"NC{axes}")
    if "pool_size" not in call.attributes:
        raise call.attribute_error("pool_size", "a list of integers")
    options = {
        "pool_size": call.spatial("pool_size", (1,) * rank),
        "strides": call.spatial("strides", (1,) * rank),
        "dilation": call.spatial("dilation", (1,) * rank),
        "padding": call.ints("padding", (0,) * rank),
        "ceil_mode": call.flag("ceil_mode"),
    }
    if average:
        options["count_include_pad"] = call.flag("count_include_pad")
    return function(call.tensor(0), **options)


@operator("nn.max_pool2d")
def max_pool2d(call: OpCall) -> Value:
    """NCHW."""
    return _pool(call, _R.max_pool2d, "HW")


@operator("nn.avg_pool2d")
def avg_pool2d(call: OpCall) -> Value:
    """NCHW."""
    return _pool(call, _R.avg_pool2d, "HW", average=True)


@operator("nn.max_pool1d")
def max_pool1d(call: OpCall) -> Value:
    """NCW."""
    return _pool(call, _R.max_pool1d, "W")


@operator("nn.avg_pool1d")
def avg_pool1d(call: OpCall) -> Value:
    """NCW."""
    return _pool(call, _R.avg_pool1d, "W", average=True)


@operator("nn.global_avg_pool2d", "nn.global_max_pool2d")
def global_pool2d(call: OpCall) -> Value:
    """A reduction over height and width that keeps both axes."""
    call.layout("layout", "NCHW")
    call.layout("out_layout", "NCHW")
    reduce = relax.op.mean if call.name == "nn.global_avg_pool2d" else relax.op.max
    return reduce(call.tensor(0), axis=[2, 3], keepdims=True)


@operator("nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d", "nn.adaptive_max_pool2d")
def adaptive_pool(call: OpCall) -> Value:
    """To ``output_size``; a pool to one element is a reduction."""
    shape = call.shape(0)
    axes = "HW"[4 - len(shape) :] if len(shape) in (3, 4) else "HW"
    call.layout("layout", f"NC{axes}")
    call.layout("out_layout", f"NC{axes}")
    size = call.ints("output_size", ()) or shape[2:]
    size = size * len(axes) if len(size) == 1 else size
    spatial = list(range(2, len(shape)))
    average = call.name != "nn.adaptive_max_pool2d"
    if prod(size) == 1:
        return (relax.op.mean if average else relax.op.max)(call.tensor(0), axis=spatial, keepdims=True)
    if not average:
        raise call.attribute_error("output_size", "[1, 1]", "use nn.max_pool2d with fixed windows")
    return (_R.adaptive_avg_pool1d if len(axes) == 1 else _R.adaptive_avg_pool2d)(call.tensor(0), size)


@operator("nn.pad")
def pad(call: OpCall) -> Value:
    """The value to pad with is the second operand (TVM ≥ 0.8) or the attribute ``pad_value`` (before)."""
    widths = call.attribute("pad_width")
    rank = len(call.shape(0))
    pairs = isinstance(widths, tuple) and all(isinstance(w, tuple) and len(w) == 2 for w in widths)
    if not pairs or len(widths) != rank or not all(type(v) is int for w in widths for v in w):
        raise call.attribute_error("pad_width", f"{rank} pairs of integers")
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}
    mode = modes[call.text("pad_mode", "constant", tuple(modes))]
    value = call.scalar(1) if len(call.args) > 1 else call.number("pad_value", 0.0)
    return _R.pad(call.tensor(0), [v for w in widths for v in w], mode, value)


@operator("nn.batch_flatten")
def batch_flatten(call: OpCall) -> Value:
    """[n, …] to [n, product of the rest]."""
    shape = call.shape(0)
    return relax.op.reshape(call.tensor(0), (shape[0], prod(shape[1:])))


_METHODS = {
    "nearest_neighbor": "nearest_neighbor",
    "linear": "linear",
    "bilinear": "linear",
    "cubic": "cubic",
}
_METHODS["bicubic"] = "cubic"
_ROUND = "round_prefer_ceil"
"""Relay's TVM rounded halves away from zero, which is up at positions inside of an image; that of Relax rounds them to the even one."""


@operator("nn.upsampling")
def upsampling(call: OpCall) -> Value:
    """Height × scale_h, width × scale_w."""
    call.layout("layout", "NCHW")
    shape = call.shape(0)
    size = (round(shape[2] * call.number("scale_h", 1)), round(shape[3] * call.number("scale_w", 1)))
    corners = call.flag("align_corners")
    return relax.op.image.resize2d(
        call.tensor(0),
        size,
        method=_METHODS[call.text("method", "nearest_neighbor", tuple(_METHODS))],
        coordinate_transformation_mode="align_corners" if corners else "asymmetric",
        rounding_method=_ROUND if corners else "floor",
        cubic_alpha=-0.5,
    )


@operator("image.resize2d")
def resize2d(call: OpCall) -> Value:
    """To ``size``; an empty rounding method means floor, except with aligned corners."""
    call.layout("layout", "NCHW")
    call.text("out_dtype", "", ("", "float32", "void"))
    call.ignore("roi", "extrapolation_value")  # both are read in tf_crop_and_resize mode only
    modes = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    mode = call.text("coordinate_transformation_mode", "half_pixel", modes)
    size = call.ints("size")
    if size is None or len(size) != 2:
        raise call.attribute_error("size", "[height, width]")
    rounding = call.text("rounding_method", "round") or ("round" if mode == "align_corners" else "floor")
    return relax.op.image.resize2d(
        call.tensor(0),
        size,
        method=_METHODS[call.text("method", "linear", tuple(_METHODS))],
        coordinate_transformation_mode=mode,
        rounding_method=_ROUND if rounding == "round" else rounding,
        cubic_alpha=call.number("cubic_alpha", -0.5),
        cubic_exclude=call.integer("cubic_exclude", 0),
    )
