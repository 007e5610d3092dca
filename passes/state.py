"""What the stages tell each other, as attributes of the IRModule (documented here, read and written nowhere else).

=================  =====================================================================================================
attribute          meaning
=================  =====================================================================================================
``tt.values``      {parameter name: initial value}; parameters of all functions that share a name share their storage
``tt.roles``       {parameter name: role}: input, label, const (flash), param (trainable), state, grad, list
``tt.layers``      the trainable layers in order of execution, as JSON (see `Layer`)
``tt.fixed``       names of values that are no parameters of the network (buffers, constants) and so are never trained, as JSON;
                   where the front end cannot tell, those alone that passes made
``tt.adapters``    names of the parameters of inserted branches (TinyTL), as JSON
``tt.renamed``     [[name in the network, name here], …] of inputs and parameters whose names the library needs, as JSON
``tt.outputs``     {function name: [role of each output]}: output, loss, or the name of the parameter that it updates
``tt.recomputed``  {function name: {"segments": how many, "macs": multiply-accumulates that are executed once more}}, as JSON
``tt.memory``      the memory problem and plan of the lowered module, as JSON
=================  =====================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import KernelError

VALUES = "tt.values"
ROLES = "tt.roles"
LAYERS = "tt.layers"
FIXED = "tt.fixed"
ADAPTERS = "tt.adapters"
RENAMED = "tt.renamed"
MEMORY = "tt.memory"
RECOMPUTED = "tt.recomputed"
UNTRAINED = "tt.untrained"


@dataclass(frozen=True)
class Layer:
    """A convolution or linear weight with its bias.

    ``id`` counts layers in order of execution; a weight that is used several times is one layer, which has the first bias of its
    uses, and the others as ``other_biases``. ``channels`` and ``inputs`` are the first two axes of the weight (for grouped
    convolutions ``inputs`` is the input channels of one group). ``macs`` are those of one forward pass over one sample.
    """

    id: int
    kind: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    macs: int
    depthwise: bool = False
    other_biases: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.weight_shape[0]

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1×1 convolution, and not a depthwise one."""
        return self.weight_shape[2:] == (1, 1) and not self.depthwise

    @property
    def inputs(self) -> int:
        """Input channels of one group."""
        return self.weight_shape[1]

    @property
    def weights(self) -> int:
        """Number of weights, bias not counted."""
        return int(np.prod(self.weight_shape))


def get_values(mod: tvm.IRModule) -> dict[str, np.ndarray]:
    """Initial values of the module's parameters by name."""
    if mod.attrs is None or VALUES not in mod.attrs:
        return {}
    return {str(k): v.numpy() for k, v in mod.attrs[VALUES].items()}


def with_values(mod: tvm.IRModule, values: Mapping[str, np.ndarray]) -> tvm.IRModule:
    """The module with ``values`` as its parameters' initial values, in order of their names."""
    tensors = {k: tvm.runtime.tensor(np.asarray(values[k], order="C")) for k in sorted(values)}
    return mod.with_attr(VALUES, tensors)


def get_json(mod: tvm.IRModule, key: str, default: Any = None) -> Any:
    """A JSON attribute of the module, ``default`` where it is absent."""
    if mod.attrs is None or key not in mod.attrs:
        return default
    return json.loads(str(mod.attrs[key]))


def with_json(mod: tvm.IRModule, key: str, value: Any) -> tvm.IRModule:
    """The module with ``value`` stored under ``key``, keys sorted so that equal values are equal bytes."""
    return mod.with_attr(key, json.dumps(value, sort_keys=True, separators=(",", ":")))


def get_roles(mod: tvm.IRModule) -> dict[str, str]:
    """Roles of the module's parameters by name."""
    return dict(get_json(mod, ROLES, {}))


def with_roles(mod: tvm.IRModule, roles: Mapping[str, str]) -> tvm.IRModule:
    """The module with ``roles`` as the roles of its parameters."""
    return with_json(mod, ROLES, dict(roles))


def get_layers(mod: tvm.IRModule) -> tuple[Layer, ...]:
    """The trainable layers in order of execution."""
    entries = get_json(mod, LAYERS, [])
    tuples = ("weight_shape", "other_biases")
    return tuple(Layer(**{**e, **{key: tuple(e[key]) for key in tuples}}) for e in entries)


def with_layers(mod: tvm.IRModule, layers: tuple[Layer, ...]) -> tvm.IRModule:
    """The module with ``layers`` as its table of layers."""
    return with_json(mod, LAYERS, [asdict(layer) for layer in layers])


def get_fixed(mod: tvm.IRModule) -> frozenset[str]:
    """Names of the values that are known to be no parameters of the network."""
    return frozenset(get_json(mod, FIXED, []))


def with_fixed(mod: tvm.IRModule, names: Collection[str]) -> tvm.IRModule:
    """The module with ``names`` as the values that are no parameters."""
    return with_json(mod, FIXED, sorted(names))


def get_adapters(mod: tvm.IRModule) -> tuple[str, ...]:
    """Names of the parameters of the branches that `InsertAdapters` added."""
    return tuple(get_json(mod, ADAPTERS, []))


def with_adapters(mod: tvm.IRModule, names: tuple[str, ...]) -> tvm.IRModule:
    """The module with ``names`` as the parameters of inserted branches."""
    return with_json(mod, ADAPTERS, list(names))


def get_renamed(mod: tvm.IRModule) -> tuple[tuple[str, str], ...]:
    """(name in the network, name here) of what `ReserveNames` renamed."""
    return tuple((old, new) for old, new in get_json(mod, RENAMED, []))


def with_renamed(mod: tvm.IRModule, names: Sequence[tuple[str, str]]) -> tvm.IRModule:
    """The module with ``names`` as what was renamed."""
    return with_json(mod, RENAMED, list(names))


def new_tensor(
    values: MutableMapping[str, np.ndarray],
    roles: MutableMapping[str, str],
    name: str,
    value: np.ndarray,
    role: str,
) -> relax.Var:
    """A tensor of the library's own: entered into ``values`` and ``roles``, and returned as a variable.

    KernelError where something else has the name: the two would share their storage.
    """
    check_new(name, {*values, *roles})
    values[name], roles[name] = value, role
    return relax.Var(name, relax.TensorType(value.shape, str(value.dtype)))


def check_new(name: str, taken: Collection[str]) -> None:
    """KernelError where ``name`` is ``taken``."""
    if name in taken:
        hint = "rename the network's input or parameter of that name, and report it"
        raise KernelError("names", f"tensor {name}", "another tensor of that name", "unique names", hint)


def free_name(name: str, taken: Collection[str]) -> str:
    """``name``, or ``name_1``, ``name_2`` …: the first that is not ``taken``."""
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    return unique
