"""Models kept from the Relay years: text as Apache TVM 0.7 to 0.19 printed it, with its parameter file.

``#[version = "0.0.5"] def @main(%x: Tensor[(1, 3, 32, 32), float32], …) { %0 = nn.conv2d(%x, …); … }``. TVM 0.27 has no
Relay any more; here a tokenizer and a parser rebuild the graph, and each operator is written as Relax operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm

from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.frontend.relay_text.lower import lower_module
from tvm_tinytrain.frontend.relay_text.params import read_params
from tvm_tinytrain.frontend.relay_text.parser import parse
from tvm_tinytrain.frontend.relay_text.registry import supported_operators
from tvm_tinytrain.frontend.tidy import tidy_parameters

__all__ = ["from_relay_text", "read_params", "supported_operators"]


def from_relay_text(text: str, params: Mapping[str, Any] | bytes = b"") -> tvm.IRModule:
    """Relay text as a Relax module ``main(inputs…, parameters…)`` with the values in ``tt.values``.

    Parameters
    ----------
    text
        What ``mod.astext()`` gave: a module with ``@main`` or one function; float32, NCHW, static shapes. Tensor constants
        come from its metadata section.
    params
        Arrays by name, or the bytes of the file that ``relay.save_param_dict`` wrote. A parameter of ``@main`` that has no
        value here is an input.

    Raises
    ------
    ImportModelError
        The text, the metadata section or the parameter file cannot be read, or holds what cannot be converted; its ``thing``
        begins with ``line:column``.
    ShapeError, DTypeError
        A parameter has a dynamic shape, a value of another shape, or is not float32.
    """
    given = (read_params(params) if params else {}) if isinstance(params, bytes) else params
    mod, values = lower_module(parse(text), given)
    return tidy_parameters(from_relax(mod, values))
