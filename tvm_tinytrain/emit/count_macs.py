"""C text that counts the multiply-accumulates it executes, for instrumented host builds.

A multiply-accumulate is a product of floats that is added to what the store overwrites: ``acc = acc + x * w``. It becomes
``acc = acc + TT_MAC(x * w)``, so that a product behind a condition counts only where it is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

MACRO = "TT_MAC"
COUNTER = "tt_macs_executed"
"""The uint64_t of an instrumented library; whoever counts sets it to zero."""
DEFINITION = f"uint64_t {COUNTER};\n#define {MACRO}(product) (++{COUNTER}, (product))"


def counting_value(store: tirx.BufferStore, show: Callable[[Any], str]) -> str | None:
    """The text of the value of a store that accumulates products, None for any other; ``show`` prints expressions."""
    if not _reads_itself(store.value, store):
        return None
    text = _counted(store.value, show)
    return text if f"{MACRO}(" in text else None


def _reads_itself(e: Any, store: tirx.BufferStore) -> bool:
    """Whether an addend of ``e`` is the element that the store overwrites."""
    if isinstance(e, tvm.ir.TensorLoad):
        return bool(e.source.same_as(store.buffer) and tvm_ffi.structural_equal(e.indices, store.indices))
    return type(e).__name__ == "Add" and (_reads_itself(e.a, store) or _reads_itself(e.b, store))


def _counted(e: Any, show: Callable[[Any], str]) -> str:
    kind = type(e).__name__
    if kind == "Add":
        return f"({_counted(e.a, show)} + {_counted(e.b, show)})"
    if kind == "Mul":
        return f"{MACRO}({show(e)})"
    if kind == "Select":
        return f"({show(e.condition)} ? {_counted(e.true_value, show)} : {_counted(e.false_value, show)})"
    if isinstance(e, tvm.ir.Call) and str(getattr(e.op, "name", "")).endswith("if_then_else"):
        condition, yes, no = e.args
        return f"({show(condition)} ? {_counted(yes, show)} : {_counted(no, show)})"
    return show(e)
