"""C99 text of TIR expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm

from tvm_tinytrain.emit.c_vectors import lanes_of_dtype, vector_type
from tvm_tinytrain.errors import KernelError

_BINARY = {
    "Add": "+", "Sub": "-", "Mul": "*", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!=", "And": "&&", "Or": "||",
    "RShift": ">>", "LShift": "<<", "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^",
}  # fmt: skip
_MATH = {
    "exp": "expf", "log": "logf", "sqrt": "sqrtf", "fabs": "fabsf", "floor": "floorf", "ceil": "ceilf", "pow": "powf",
    "trunc": "truncf", "sin": "sinf", "cos": "cosf", "nearbyint": "nearbyintf",
}  # fmt: skip
"""What TVM leaves as an intrinsic, of its own or of LLVM; all others it lowers to calls of the C library and arithmetic."""
_REINTERPRET = {
    ("float32", "uint32"): "tt_bits",
    ("float32", "int32"): "(int32_t)tt_bits",
    ("uint32", "float32"): "tt_float",
}
_C_TYPES = {
    "float32": "float", "float64": "double", "int32": "int32_t", "int64": "int64_t", "int8": "int8_t", "uint8": "uint8_t",
    "uint32": "uint32_t", "uint64": "uint64_t", "uint16": "uint16_t", "int16": "int16_t", "bool": "int32_t",
}  # fmt: skip


def c_type(dtype: str) -> str:
    """The C type of a TIR element type."""
    if lanes_of_dtype(dtype) > 1:
        return vector_type(lanes_of_dtype(dtype))
    if dtype not in _C_TYPES:
        raise KernelError(
            "emit C", f"dtype {dtype}", dtype, ", ".join(_C_TYPES), "convert the network to float32"
        )
    return _C_TYPES[dtype]


def float_literal(value: float) -> str:
    """A float32 literal that reads back to the same bits."""
    if math.isinf(value):
        return "(-INFINITY)" if value < 0 else "INFINITY"
    if math.isnan(value):
        return "NAN"
    text = f"{value:.9g}"
    if "." not in text and "e" not in text:
        text += ".0"
    return text + "f"


def dtype_of(expr: Any) -> str:
    """The element type of an expression as TVM writes it."""
    return str(getattr(expr, "dtype", None) or expr.ty.dtype)


class ExprPrinter:
    """Prints expressions; ``name`` gives a variable's text and ``load`` that of a buffer element."""

    def __init__(self, name: Callable[[Any], str], load: Callable[[Any, Any], str], kernel: str) -> None:
        self.name = name
        self.load = load
        self.kernel = kernel

    def __call__(self, e: Any) -> str:
        """The C text of an expression, in parentheses where it is not atomic."""
        kind = type(e).__name__
        if isinstance(e, tvm.ir.Var):
            return self.name(e)
        if kind == "IntImm":
            return f"{int(e.value)}" if int(e.value) >= 0 else f"({int(e.value)})"
        if kind == "FloatImm":
            text = float_literal(float(e.value))
            return f"({text})" if text.startswith("-") else text
        if kind == "Add" and lanes_of_dtype(dtype_of(e)) > 1 and type(e.b).__name__ == "Mul":
            return self._vector_sum(e.a, e.b)
        if kind in _BINARY:
            return f"({self(e.a)} {_BINARY[kind]} {self(e.b)})"
        if kind == "Div":
            return f"({self(e.a)} / {self(e.b)})"
        if kind in ("Mod",):
            return f"({self(e.a)} % {self(e.b)})"
        if kind in ("FloorDiv", "FloorMod"):
            # LowerIntrin turned those whose operand may be negative into truncated forms: what is left is non-negative
            return f"({self(e.a)} {'/' if kind == 'FloorDiv' else '%'} {self(e.b)})"
        if kind == "Broadcast":
            return f"tt_splat{int(e.lanes)}({self(e.value)})"
        if kind in ("Min", "Max"):
            lanes = lanes_of_dtype(dtype_of(e))
            if lanes > 1:
                return f"tt_{kind.lower()}{lanes}({self(e.a)}, {self(e.b)})"
            suffix = "f" if dtype_of(e).startswith("float") else "i"
            return f"tt_{kind.lower()}{suffix}({self(e.a)}, {self(e.b)})"
        if kind == "Not":
            return f"(!{self(e.a)})"
        if kind == "Select":
            return f"({self(e.condition)} ? {self(e.true_value)} : {self(e.false_value)})"
        if kind == "Cast":
            return f"(({c_type(dtype_of(e))}){self(e.value)})"
        if kind == "TensorLoad":
            return self.load(e.source, e.indices)
        if isinstance(e, tvm.ir.Call):
            return self._call(e)
        raise KernelError("emit C", f"kernel {self.kernel}", kind, "expressions of C99", "report this kernel")

    def _vector_sum(self, start: Any, product: Any) -> str:
        """A vector to which a product is added, with one operand for all elements or one for each."""
        lanes = lanes_of_dtype(dtype_of(product))
        a, b = product.a, product.b
        if type(a).__name__ == "Broadcast":
            a, b = b, a
        if type(b).__name__ == "Broadcast":
            return f"tt_fman{lanes}({self(start)}, {self(a)}, {self(b.value)})"
        return f"tt_fma{lanes}({self(start)}, {self(a)}, {self(b)})"

    def _call(self, e: Any) -> str:
        op = str(getattr(e.op, "name", e.op)).rsplit(".", 1)[-1]
        if op == "if_then_else":
            condition, yes, no = (self(a) for a in e.args)
            return f"({condition} ? {yes} : {no})"
        if op == "call_llvm_pure_intrin":
            return self._llvm_intrinsic(e)
        if op in ("call_pure_extern", "call_extern"):
            return f"{e.args[0].value}({', '.join(self(a) for a in e.args[1:])})"
        if op in _MATH and dtype_of(e) == "float32":
            return f"{_MATH[op]}({', '.join(self(a) for a in e.args)})"
        infix = {
            "shift_right": ">>", "shift_left": "<<", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^",
        }  # fmt: skip
        if op in infix:
            return f"({self(e.args[0])} {infix[op]} {self(e.args[1])})"
        if op == "bitwise_not":
            return f"(~{self(e.args[0])})"
        if op == "reinterpret":
            return self._reinterpret(e)
        if op in ("likely",):
            return self(e.args[0])
        raise KernelError(
            "emit C",
            f"kernel {self.kernel}",
            f"intrinsic {op}",
            ", ".join(sorted(_MATH)),
            "report this kernel",
        )

    def _llvm_intrinsic(self, e: Any) -> str:
        """What an intrinsic of LLVM computes, in C: a kernel for LLVM has a text too, and with it a prototype."""
        name = str(tvm.get_global_func("target.llvm_get_intrinsic_name")(int(e.args[0].value)))
        name, arguments = name.removeprefix("llvm."), [self(a) for a in e.args[1:]]
        if name == "fmuladd":
            return f"({arguments[0]} * {arguments[1]} + {arguments[2]})"
        if name in _MATH and dtype_of(e) == "float32":
            return f"{_MATH[name]}({', '.join(arguments)})"
        raise KernelError(
            "emit C",
            f"kernel {self.kernel}",
            f"intrinsic llvm.{name}",
            "fmuladd, " + ", ".join(sorted(_MATH)),
            "report this kernel",
        )

    def _reinterpret(self, e: Any) -> str:
        """The bits of a value under another type of the same width."""
        pair = (dtype_of(e.args[0]), dtype_of(e))
        if pair in _REINTERPRET:
            return f"{_REINTERPRET[pair]}({self(e.args[0])})"
        raise KernelError(
            "emit C",
            f"kernel {self.kernel}",
            f"reinterpret {pair[0]} as {pair[1]}",
            "float32 and uint32",
            "report this kernel",
        )
