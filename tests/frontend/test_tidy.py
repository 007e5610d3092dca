"""Parameters after import: folded, stored as vectors, dropped, and the function computes the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from tests.frontend.running import run
from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.frontend.tidy import tidy_parameters
from tvm_tinytrain.passes.rewriting import bindings, op_name, shape_of
from tvm_tinytrain.passes.state import get_values

X = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
Body = Callable[..., relax.Expr]


def build(body: Body, **shapes: tuple[int, ...]) -> tvm.IRModule:
    rng = np.random.default_rng(0)
    values = {n: (rng.random(s) + 0.5).astype(np.float32) for n, s in shapes.items()}
    bb = relax.BlockBuilder()
    variables = [relax.Var(n, relax.TensorType(s, "float32")) for n, s in ({"x": X.shape} | shapes).items()]
    with bb.function("main", variables):
        bb.emit_func_output(bb.normalize(body(*variables)))
    return from_relax(bb.get(), values)


def tidied(body: Body, **shapes: tuple[int, ...]) -> tvm.IRModule:
    """The tidy form; checked to compute the same."""
    before = build(body, **shapes)
    after = tidy_parameters(before)
    np.testing.assert_allclose(run(after, X), run(before, X), rtol=1e-6)
    assert set(get_values(after)) == {p.name for p in after["main"].params[1:]}
    relax.analysis.well_formed(after)
    return after


def params(mod: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    return {p.name: shape_of(p) for p in mod["main"].params[1:]}


def operators(mod: tvm.IRModule) -> list[str]:
    names = [op_name(b.value) for b in bindings(mod["main"])]
    return [n for n in names if n.startswith("relax.")]


def test_arithmetic_on_parameters_is_folded_under_the_first_name() -> None:
    mod = tidied(
        lambda x, g, v: x * relax.op.reshape(g / relax.op.sqrt(v + relax.const(1e-3)), [3, 1, 1]),
        g=(3,),
        v=(3,),
    )
    assert params(mod) == {"g": (3,)}
    assert operators(mod) == ["relax.reshape", "relax.multiply"]


def test_a_parameter_that_is_read_elsewhere_stays() -> None:
    mod = tidied(lambda x, g: x * relax.op.exp(g) + g, g=(2,))
    assert params(mod) == {"g": (2,), "folded_g": (2,)}


def test_views_of_vectors_and_transposed_matrices_stay() -> None:
    mod = tidied(lambda x, w: relax.op.matmul(x, relax.op.permute_dims(w)), w=(5, 2))
    assert params(mod) == {"w": (5, 2)} and operators(mod) == ["relax.permute_dims", "relax.matmul"]
    mod = tidied(lambda x, b: x + relax.op.reshape(b, [3, 1, 1]), b=(3,))
    assert params(mod) == {"b": (3,)} and operators(mod) == ["relax.reshape", "relax.add"]


def test_expanded_vectors_are_views() -> None:
    mod = tidied(lambda x, b: x + relax.op.expand_dims(b, [1, 2]), b=(3,))
    assert params(mod) == {"b": (3,)} and operators(mod) == ["relax.reshape", "relax.add"]


def test_stored_columns_become_vectors() -> None:
    mod = tidied(lambda x, b: x + b, b=(1, 3, 1, 1))
    assert params(mod) == {"b": (3,)} and operators(mod) == ["relax.reshape", "relax.add"]


def test_weights_that_look_like_columns_stay() -> None:
    mod = tidied(lambda x, w: relax.op.nn.conv2d(x, w), w=(1, 3, 1, 1))
    assert params(mod) == {"w": (1, 3, 1, 1)}


def test_parts_of_a_parameter() -> None:
    mod = tidied(lambda x, w: x * relax.TupleGetItem(relax.op.split(w, 2, 0), 1), w=(4,))
    assert params(mod) == {"folded_w": (2,)}


def test_unused_parameters_go() -> None:
    assert params(tidied(lambda x, a, b: x + b, a=(3, 3), b=(2,))) == {"b": (2,)}


def test_nothing_to_do_changes_nothing() -> None:
    before = build(lambda x, b: relax.op.nn.relu(x + b), b=(2,))
    assert tidy_parameters(before).same_as(before)


def test_what_is_computed_from_a_layers_weight_stays() -> None:
    def body(x: relax.Expr, w: relax.Expr) -> relax.Expr:
        row = relax.op.matmul(relax.op.reshape(x, (1, 12)), relax.op.permute_dims(w))
        return relax.op.matmul(row, relax.op.multiply(w, relax.const(0.5)))

    assert params(tidied(body, w=(5, 12))) == {"w": (5, 12)}
