"""Relay's elementwise operators, reductions and shape operators as Relax.

Defaults are those of Apache TVM 0.19, ``include/tvm/relay/attrs/transform.h`` and ``reduce.h``.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from tvm_tinytrain.frontend.relay_text.registry import OpCall, Value, operator

_R = relax.op
_UNARY = {
    "sigmoid": _R.sigmoid, "tanh": _R.tanh, "fast_tanh": _R.tanh, "exp": _R.exp, "fast_exp": _R.exp, "log": _R.log,
    "sqrt": _R.sqrt, "rsqrt": _R.rsqrt, "erf": _R.erf, "fast_erf": _R.erf, "negative": _R.negative, "abs": _R.abs,
}  # fmt: skip
_BINARY = {
    "add": _R.add, "subtract": _R.subtract, "multiply": _R.multiply, "divide": _R.divide, "power": _R.power,
    "maximum": _R.maximum, "minimum": _R.minimum,
}  # fmt: skip
_REDUCTIONS = {"mean": _R.mean, "sum": _R.sum, "max": _R.max, "min": _R.min, "prod": _R.prod}


@operator(*_UNARY)
def unary(call: OpCall) -> Value:
    """Element by element."""
    return _UNARY[call.name](call.tensor(0))


@operator(*_BINARY)
def binary(call: OpCall) -> Value:
    """Element by element, with NumPy's broadcasting."""
    return _BINARY[call.name](call.tensor(0), call.tensor(1))


@operator("copy", "annotation.stop_fusion", "annotation.cast_hint", "on_device", "device_copy")
def identity(call: OpCall) -> Value:
    """Nothing to compute."""
    call.ignore(*call.attributes)
    return call.tensor(0)


@operator("clip")
def clip(call: OpCall) -> Value:
    """min(max(x, a_min), a_max)."""
    high = call.number("a_max")
    return _R.clip(call.tensor(0), min(call.number("a_min"), high), high)


@operator("cast")
def cast(call: OpCall) -> Value:
    """To ``dtype``."""
    x, dtype = call.tensor(0), call.text("dtype", "")
    return x if str(x.ty.dtype) == dtype else _R.astype(x, dtype)


def _axes(call: OpCall) -> list[int]:
    """The axes that a reduction runs over: ``axis``, or all others with ``exclude``; without ``axis`` all of them either way."""
    rank = len(call.shape(0))
    axes = call.ints("axis")
    exclude = call.flag("exclude")
    if not axes:
        return list(range(rank))
    chosen = [call.axis("axis", a, rank) for a in axes]
    return [a for a in range(rank) if a not in chosen] if exclude else chosen


@operator(*_REDUCTIONS)
def reduction(call: OpCall) -> Value:
    """Over ``axis``."""
    return _REDUCTIONS[call.name](call.tensor(0), axis=_axes(call), keepdims=call.flag("keepdims"))


@operator("variance")
def variance(call: OpCall) -> Value:
    """The mean square distance from the second operand, which is the mean; ``unbiased`` divides by n − 1."""
    axes, keepdims = _axes(call), call.flag("keepdims")
    distance = _R.subtract(call.tensor(0), call.tensor(1))
    mean = _R.mean(_R.multiply(distance, distance), axis=axes, keepdims=keepdims)
    count = prod(call.shape(0)[a] for a in axes)
    return _R.multiply(mean, relax.const(count / (count - 1))) if call.flag("unbiased") else mean


@operator("concatenate")
def concatenate(call: OpCall) -> Value:
    """The fields of a tuple along ``axis``."""
    return _R.concat(call.tensors(0), axis=call.integer("axis", 0))


@operator("stack")
def stack(call: OpCall) -> Value:
    """The fields of a tuple along a new axis."""
    return _R.stack(call.tensors(0), axis=call.integer("axis", 0))


@operator("split")
def split(call: OpCall) -> Value:
    """Into equal parts (an integer) or at indices (a list)."""
    parts = call.attribute("indices_or_sections")
    listed = isinstance(parts, tuple) and all(type(p) is int for p in parts)
    if type(parts) is not int and not listed:
        raise call.attribute_error("indices_or_sections", "an integer or a list of integers")
    shape = call.shape(0)
    axis = call.axis("axis", call.integer("axis", 0), len(shape))
    if not listed and (parts < 1 or shape[axis] % parts):
        raise call.attribute_error("indices_or_sections", f"a divisor of {shape[axis]}")
    return _R.split(call.tensor(0), list(parts) if listed else parts, axis)


@operator("strided_slice")
def strided_slice(call: OpCall) -> Value:
    """From ``begin`` up to ``end``; in mode "size" ``end`` holds lengths, −1 for what is left."""
    shape = call.shape(0)
    begin, end = call.ints("begin"), call.ints("end")
    if begin is None or end is None:
        raise call.attribute_error("begin" if begin is None else "end", "a list of integers")
    if len(end) < len(begin):
        end = (*end, *shape[len(end) : len(begin)])
    axes = call.ints("axes")
    axes = tuple(range(len(begin))) if axes is None else tuple(call.axis("axes", a, len(shape)) for a in axes)
    strides = call.ints("strides") or (1,)
    strides = (*strides, *(1,) * (len(begin) - len(strides)))
    if call.text("slice_mode", "end", ("end", "size")) == "size":
        strides = (1,) * len(begin)
        end = tuple(shape[a] if e < 0 else b + e for a, b, e in zip(axes, begin, end, strict=True))
    return _R.strided_slice(call.tensor(0), axes, begin, end, strides)


@operator("reshape")
def reshape(call: OpCall) -> Value:
    """0 copies an extent, −1 is inferred, −2 copies what is left, −3 merges two, −4 splits one into the next two."""
    target = call.ints("newshape")
    if target is None:
        raise call.attribute_error("newshape", "a list of integers")
    keep_zero = call.flag("allowzero")
    return _R.reshape(call.tensor(0), _new_shape(call, target, keep_zero))


def _new_shape(call: OpCall, target: tuple[int, ...], keep_zero: bool) -> list[int]:
    source = call.shape(0)
    out: list[int] = []
    taken, index = 0, 0
    try:
        while index < len(target):
            extent = target[index]
            if extent == -4:
                first, second = target[index + 1], target[index + 2]
                first = source[taken] // second if first == -1 else first
                out += [first, source[taken] // first]
                index += 2
                taken += 1
            elif extent == -3:
                out.append(source[taken] * source[taken + 1])
                taken += 2
            elif extent == -2:
                out += source[taken:]
                taken = len(source)
            else:
                out.append(source[taken] if extent == 0 and not keep_zero else extent)
                taken += 1
            index += 1
    except (IndexError, ZeroDivisionError):
        raise call.attribute_error("newshape", f"a new shape for {source}") from None
    if out.count(-1) == 1:
        out[out.index(-1)] = prod(source) // max(1, -prod(out))
    if prod(out) != prod(source) or min(out, default=1) < 0:
        raise call.attribute_error("newshape", f"a new shape for {source}")
    return out


@operator("squeeze")
def squeeze(call: OpCall) -> Value:
    """Without the axes ``axis``, or without all of extent 1."""
    shape, axes = call.shape(0), call.ints("axis")
    chosen = None if axes is None else [call.axis("axis", a, len(shape)) for a in axes]
    if chosen is not None and any(shape[a] != 1 for a in chosen):
        raise call.attribute_error("axis", f"axes of extent 1 of {shape}")
    return _R.squeeze(call.tensor(0), chosen)


@operator("expand_dims")
def expand_dims(call: OpCall) -> Value:
    """``num_newaxis`` new axes before ``axis``."""
    count, rank = call.integer("num_newaxis", 1), len(call.shape(0))
    first = call.axis("axis", call.integer("axis"), rank + 1)
    return _R.expand_dims(call.tensor(0), list(range(first, first + count))) if count else call.tensor(0)


@operator("transpose")
def transpose(call: OpCall) -> Value:
    """Axes permuted, or in reverse order without ``axes``."""
    axes = call.ints("axes")
    rank = len(call.shape(0))
    order = [call.axis("axes", a, rank) for a in axes] if axes else list(range(rank))[::-1]
    return _R.permute_dims(call.tensor(0), order)


@operator("broadcast_to")
def broadcast_to(call: OpCall) -> Value:
    """To ``shape``."""
    shape = call.ints("shape")
    call.text("dtype", "", ("", "float32", "void"))
    if shape is None:
        raise call.attribute_error("shape", "a list of integers")
    return _R.broadcast_to(call.tensor(0), shape)


@operator("layout_transform")
def layout_transform(call: OpCall) -> Value:
    """Between layouts of single letters: ``NHWC`` to ``NCHW``."""
    source, target = call.text("src_layout", ""), call.text("dst_layout", "")
    rank = len(call.shape(0))
    if sorted(source) != sorted(target) or len(set(source)) != rank or not source.isupper():
        hint = "print the module before layouts are packed"
        raise call.attribute_error("dst_layout", f"a permutation of {rank} letters of {source!r}", hint)
    axes: list[Any] = [source.index(letter) for letter in target]
    return call.tensor(0) if axes == sorted(axes) else _R.permute_dims(call.tensor(0), axes)
