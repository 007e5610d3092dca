"""Gradients of every operator against PyTorch autograd in float64, and that none is computed that nobody asked for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import tvm
from tvm import relax

from benchmarks.operator_cases import PROBE_INPUT, OperatorCase, case, fn, operator_cases, probe
from tests.passes.helpers import gradient_names
from tests.passes.operator_oracle import bundled, compare, derive, lowered
from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.rewriting import bindings

TOLERANCE = 1e-5
TOGETHER = 24
"""Cases that are compiled at once."""

Cases = tuple[OperatorCase, ...]


def groups() -> list[Cases]:
    """Cases of mean squared error in bundles; other losses and steps each by itself."""
    cases = operator_cases()
    plain = [c for c in cases if c.loss == "mse" and "floor" not in c.name]
    bundles = [tuple(plain[i : i + TOGETHER]) for i in range(0, len(plain), TOGETHER)]
    return bundles + [(c,) for c in cases if c not in plain]


def test_enough_cases() -> None:
    assert len(operator_cases()) >= 120


@pytest.mark.host_compiler
@pytest.mark.parametrize("cases", groups(), ids=lambda cases: cases[0].name)
def test_gradients(cases: Cases) -> None:
    errors = _compare(cases)
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}


def _compare(cases: Cases) -> dict[str, float]:
    """As `compare`; where a bundle cannot be built, the case that is to blame is named by its own failure."""
    try:
        return compare(cases)
    except Exception:
        for single in cases if len(cases) > 1 else ():
            try:
                compare((single,))
            except Exception as error:
                raise AssertionError(f"{single.name}: {error}") from error
        raise


@pytest.mark.parametrize("cases", groups()[:3], ids=lambda cases: cases[0].name)
def test_a_bundle_is_found_by_every_name(cases: Cases, request: pytest.FixtureRequest) -> None:
    """`pytest -k "avg pool"` takes the bundles with such a case, not only one that begins with it."""
    assert {c.name for c in cases} <= request.node.listextrakeywords()


@pytest.mark.parametrize("part", ["op", "first input", "last input"])
@pytest.mark.parametrize(
    "cases", [g for g in groups() if "floor" not in g[0].name], ids=lambda cases: cases[0].name
)
def test_nothing_is_computed_in_vain(cases: Cases, part: str) -> None:
    """Of the gradients of some parameters, every binding is needed: a rule spends nothing on an operand that wants none.

    But for steps: that their adjoint leads nowhere is known only when it has been computed.
    """
    mod = bundled(cases)[1]
    names = [p.name for p in mod["step"].params]
    wanted = {
        "op": [n for n in names if "op_" in n],
        "first input": [n for n in names if n.endswith("sources_0_bias")],
        "last input": [
            _last_source(names, c) for c in {n.split("sources")[0] for n in names if "sources" in n}
        ],
    }[part]
    step = derive(mod, wanted)
    assert set(gradient_names(step)) <= set(wanted)
    lean = relax.transform.DeadCodeElimination(["step"])(step)
    assert _calls(step) == _calls(lean)


def _last_source(names: list[str], prefix: str) -> str:
    return max(n for n in names if n.startswith(f"{prefix}sources") and n.endswith("bias"))


def _calls(mod: tvm.IRModule) -> Counter[str]:
    calls = [b.value for b in bindings(mod["step"]) if isinstance(b.value, relax.Call)]
    return Counter(str(c.args[0]) if c.op.name == "relax.call_tir" else str(c.op.name) for c in calls)


def test_operator_without_gradient_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    mod = lowered(probe(case("arctangent", fn(torch.atan), (1, 12))), PROBE_INPUT, "mse")
    with pytest.raises(
        UnsupportedOperatorError, match=r"derive backward: relax\.atan at .*: found no gradient"
    ):
        derive(mod, ["sources_0_bias"])
    assert "BlockBuilder" not in capfd.readouterr().err  # TVM's complaint about a block that nobody ended


def test_a_loop_of_a_front_end_is_named() -> None:
    three = case("three", fn(lambda x, y, z: torch.einsum("bi,bj,bk->bijk", x, y, z)), (1, 2), (1, 3), (1, 2))
    mod = lowered(probe(three), PROBE_INPUT, "mse", onnx=True)
    with pytest.raises(UnsupportedOperatorError, match=r"kernel\.einsum at .*: found no gradient"):
        derive(mod, ["sources_0_bias"])


def test_operator_without_gradient_off_the_path() -> None:
    """Between the input and the selected layer it costs nothing."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).atan())

    mod = lowered(Net().eval(), PROBE_INPUT, "mse")
    step = derive(mod, ["last_weight", "last_bias"])
    assert gradient_names(step) == ["last_weight", "last_bias"]
    assert [n for n in _calls(step) if "input_grad" in n] == []
