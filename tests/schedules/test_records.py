"""Records: what they are found by, and what they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tvm_ffi

from tests.schedules.kernel_cases import M7, kernels
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.sinks import SGDUpdate
from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.schedules.gemm import gemm
from tvm_tinytrain.schedules.knobs import AskedKnobs, Knobs, up_to
from tvm_tinytrain.schedules.records import (
    TUNABLE,
    Record,
    Tuned,
    load_records,
    read_records,
    records_folder,
    save_records,
    shipped_records,
    workload_key,
)
from tvm_tinytrain.schedules.streamed import streamed

NAME = "pointwise_tile_and_rest"
KNOBS = {"rows": 3, "columns": 7, "unroll": 2}


def record(cost: float = 10.0, knobs: dict[str, int] | None = None) -> Record:
    return Record(workload_key(kernels()[NAME]), "conv2d", "gemm", knobs or KNOBS, cost, 20.0, "instructions")


def test_key_does_not_depend_on_the_optimizers_numbers() -> None:
    spec = Conv2DSpec(4, 5, 5, 6, (1, 1))
    keys = {workload_key(conv2d_weight_grad(spec, SGDUpdate(lr_scale=s))) for s in (1.0, 0.5)}
    assert len(keys) == 1
    assert workload_key(conv2d_weight_grad(spec, SGDUpdate(), channels=3)) not in keys


def test_key_does_not_depend_on_the_tiles_of_a_block_that_streams() -> None:
    stage = Stage(Conv2DSpec(3, 6, 16, 3, (3, 3), (1, 1), (1, 1, 1, 1), groups=3), True, 0.0, 6.0)
    project = Stage(Conv2DSpec(3, 6, 16, 5, (1, 1)), True, None, None)
    block = streamed_block(StreamSpec((Link(None, stage, project),)))
    tuned = streamed(block, M7.to_tvm(), Knobs({"depthwise_pixels_0": 2}))
    other = streamed_block(StreamSpec((Link(None, stage, project, tile_depthwise=8, lanes=4),)))
    assert tuned is not None and workload_key(block) == workload_key(other)
    assert workload_key(block) == workload_key(tuned.mod["main"])


def test_file_round_trip_keeps_the_cheaper_of_two(tmp_path: Path) -> None:
    save_records(tmp_path / "a.json", [record(9.0)], command="make a", versions={"x": "1"})
    save_records(tmp_path / "b.json", [record(12.0, {"rows": 1})], command="make b", versions={})
    assert load_records(tmp_path) == {record().workload: record(9.0)}
    assert '"command": "make a"' in (tmp_path / "a.json").read_text()


def test_record_decides_the_schedule() -> None:
    func, target = kernels()[NAME], M7.to_tvm()
    tuned = Tuned({record().workload: record()})(func, target)
    wanted = gemm(func, target, Knobs(KNOBS))
    assert tuned is not None and wanted is not None
    assert tvm_ffi.structural_equal(tuned.mod, wanted.mod)
    assert not tvm_ffi.structural_equal(tuned.mod, gemm(func, target).mod)


def test_no_record_no_answer() -> None:
    assert Tuned({})(kernels()[NAME], M7.to_tvm()) is None


@pytest.mark.parametrize("limit", [1, 5, 9, 40])
def test_candidates_reach_the_size(limit: int) -> None:
    found = up_to(limit, (1, 2, 4, 8, 16))
    assert max(found) <= limit and (limit in found or limit > 16)


def test_a_value_that_is_no_candidate_is_not_taken() -> None:
    assert Knobs({"rows": 99}).choose("rows", (1, 2), 2) == 2


def test_what_a_rule_asks_for_holds_its_own_choice() -> None:
    asked = AskedKnobs()
    assert asked.choose("rows", (1, 2, 4), 3) == 3
    assert asked.space.knobs == {"rows": ((1, 2, 3, 4), 3)} and asked.space.own_choice() == {"rows": 3}


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": 99, "records": []}', '{"format": 1, "records": [{"a": 1}]}']
)
def test_a_file_that_holds_no_records_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArchiveError, match="tinytrain tune"):
        load_records(tmp_path / "a.json")


def test_shipped_records_name_candidates_of_their_rules() -> None:
    """Every shipped file says how it was made, is not worse than the rule's own choice, and is found by its core's name."""
    files = sorted(records_folder().glob("*/*.json"))
    assert files
    for path in files:
        assert json.loads(path.read_text())["command"].startswith("tinytrain tune")
        assert all(r.cost <= r.default_cost and r.rule in dict(TUNABLE) for r in read_records(path))
    assert set(shipped_records("cortex-m7")) >= {r.workload for r in read_records(files[0])}
    assert shipped_records("no-such-core") == {}
