"""Watching the passes: one file per pass, one call per pass, well-formed modules, times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tvm
from tvm import relax

from tests.emit.libraries import Small, small
from tests.passes.networks import Mixed, Twice, sample, seeded
from tvm_tinytrain import pipeline
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import Adam
from tvm_tinytrain.errors import KernelError
from tvm_tinytrain.pipeline import Instruments
from tvm_tinytrain.plan import UpdatePlan

ORDER = (
    "FoldBatchNorm", "LowerLayers", "AppendLoss", "DeriveBackward", "PruneBackward", "SplitWeights", "FuseUpdate", "LegalizeOps",
    "FuseOps", "FuseTIR", "ScheduleKernels", "LowerKernels",
)  # fmt: skip


def watched(instruments: Instruments) -> TrainModule:
    zeros = torch.zeros(1, *Small.shape)
    return build(small(), example_inputs=(zeros,), name="small", instruments=instruments)


def test_a_file_for_each_pass_in_order(tmp_path: Path) -> None:
    names: list[str] = []
    module = watched(Instruments(dump_ir=tmp_path / "ir" / "here", on_pass=names.append))
    files = sorted((tmp_path / "ir" / "here").iterdir())
    assert [f.name for f in files] == [f"{i:02d}_{name}.py" for i, name in enumerate(names, start=1)]
    places = [names.index(name) for name in ORDER]
    assert places == sorted(places)
    assert set(module.pass_seconds) == set(names)
    assert all(seconds >= 0 for seconds in module.pass_seconds.values())
    by_name = {f.name.split("_", 1)[1]: f.read_text() for f in files}
    assert "def main(" in by_name["FoldBatchNorm.py"]
    assert "def predict(" in by_name["LowerLayers.py"] and "def step(" in by_name["AppendLoss.py"]
    assert "call_tir_inplace" in by_name["FuseUpdate.py"]
    assert all("@I.ir_module" in text for text in by_name.values())


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    watched(Instruments(print_ir=True))
    said = capsys.readouterr()
    out = said.err
    assert said.out == ""  # a command prints its JSON there
    assert (
        out.index("# after FoldBatchNorm")
        < out.index("# after FuseUpdate")
        < out.index("# after LowerKernels")
    )


def test_watching_changes_nothing(tmp_path: Path) -> None:
    everything = watched(Instruments(dump_ir=tmp_path, verify_each=True, on_pass=lambda name: None))
    assert everything.files == watched(Instruments()).files


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("make", [Mixed, Twice], ids=lambda m: m.__name__)
def test_every_pass_leaves_a_well_formed_module(make: type, accumulate: bool) -> None:
    build(
        seeded(make), example_inputs=(sample(*make.shape),), optimizer=Adam(), accumulate=accumulate,
        update=UpdatePlan.from_channels({0: (0, 3), 1: (1,), 2: (0, 1, 2, 3)}), instruments=Instruments(verify_each=True),
    )  # fmt: skip


@tvm.transform.module_pass(opt_level=0, name="BreakEverything")
class BreakEverything:
    """Returns a function that reads a variable that nobody defined."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        x, y = (relax.Var(n, relax.TensorType((2,), "float32")) for n in "xy")
        broken = relax.Function([x], relax.SeqExpr([], y), y.ty).with_attr("global_symbol", "main")
        return tvm.IRModule({"main": broken})


def test_ill_formed_module_names_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "canonicalise", lambda update=None: [BreakEverything()])
    with pytest.raises(
        KernelError, match=r"pipeline: pass BreakEverything: found .*; allowed valid IR after every pass"
    ):
        watched(Instruments(verify_each=True))
