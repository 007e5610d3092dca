"""Records: what they are found by, and what they do."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm_ffi

import tvm_tinytrain as tt
from tests.schedules.kernel_cases import M7, kernels
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.models import mobilenet_v2
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.sinks import SGDUpdate
from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.schedules.blocks import kind_of
from tvm_tinytrain.schedules.gemm import gemm
from tvm_tinytrain.schedules.knobs import AskedKnobs, Knobs, up_to
from tvm_tinytrain.schedules.records import (
    Record,
    Tuned,
    load_records,
    read_records,
    records_folder,
    records_for,
    save_records,
    shipped_records,
    workload_key,
)
from tvm_tinytrain.schedules.streamed import streamed

NAME = "pointwise_tile_and_rest"
KNOBS = {"rows": 3, "columns": 7, "unroll": 2}


def record(cost: float = 10.0, knobs: dict[str, int] | None = None, **other: Any) -> Record:
    key = workload_key(kernels()[NAME])
    return replace(
        Record(key, "conv2d", "gemm", knobs or KNOBS, cost, 20.0, "instructions", "cortex-m7"), **other
    )


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
    save_records(tmp_path / "a.json", [record(9.0)], command="make a", versions={"x": "1"}, board="b")
    save_records(tmp_path / "b.json", [record(12.0, {"rows": 1})], command="make b", versions={}, board="b")
    assert records_for("cortex-m7", load_records(tmp_path)) == {record().workload: record(9.0)}
    written = (tmp_path / "a.json").read_text()
    assert '"command": "make a"' in written and '"board": "b"' in written and '"core": "cortex-m7"' in written


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


def test_records_serve_their_core_only() -> None:
    for_m7, for_a53, for_any = record(9.0), record(1.0, core="cortex-a53"), record(12.0, core="")
    assert records_for("cortex-m7", [for_m7, for_a53, for_any]) == {for_m7.workload: for_m7}
    assert records_for("cortex-a72", [for_m7, for_any]) == {for_any.workload: for_any}
    with pytest.raises(
        ArchiveError, match="found all for cortex-a53, cortex-m7; allowed some for cortex-m55"
    ):
        records_for("cortex-m55", [for_m7, for_a53])
    assert records_for("cortex-m7", []) == {}


def test_costs_in_different_units_are_not_compared() -> None:
    with pytest.raises(ArchiveError, match="costs in nanoseconds and in instructions; allowed one unit"):
        records_for("cortex-m7", [record(500.0, unit="nanoseconds"), record(1000.0)])


def test_files_of_the_format_before_are_read(tmp_path: Path) -> None:
    """They do not say for which core they are."""
    row = {key: value for key, value in asdict(record()).items() if key != "core"}
    (tmp_path / "a.json").write_text(json.dumps({"format": 1, "records": [row]}))
    assert load_records(tmp_path / "a.json") == [record(core="")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workload": [5]}, r"workload: found \[5\]; allowed text"),
        ({"rule": "nope"}, "rule: found 'nope'; allowed streamed, gemm"),
        ({"rule": ["gemm"]}, "rule: found .*; allowed text"),
        ({"knobs": [1]}, "knobs: found"),
        ({"knobs": {"rows": 4.0}}, "knobs: found"),
        ({"knobs": {"rows": "4"}}, "knobs: found"),
        ({"knobs": {"rows": True}}, "knobs: found"),
        ({"cost": "a"}, "cost: found 'a'; allowed a number"),
        ({"cost": None}, "cost: found None"),
        ({"cost": float("nan")}, "cost: found nan"),
        ({"default_cost": float("inf")}, "default_cost: found inf"),
        ({"unit": None}, "unit: found None"),
    ],
)
def test_a_record_of_wrong_values_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        record(**wrong)
    (tmp_path / "a.json").write_text(json.dumps({"format": 2, "records": [{**asdict(record()), **wrong}]}))
    with pytest.raises(ArchiveError, match="a.json, record of .*" + message):
        load_records(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "streamed"}, "rule streamed: found a kernel conv2d; allowed a record of the rule that"),
        ({"knobs": {"rows": 9999}}, "knob rows: found 9999; allowed 1, 2, 3"),
        ({"knobs": {"zzz": 1}}, "knob zzz: found 1; allowed no knob zzz; tune again"),
    ],
)
def test_a_record_that_its_rule_does_not_take_is_refused(wrong: dict[str, Any], message: str) -> None:
    found = record(**wrong)
    with pytest.raises(ArchiveError, match=message):
        Tuned({found.workload: found})(kernels()[NAME], M7.to_tvm())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "file" / "a.json"):
        (tmp_path / "file").write_text("")
        with pytest.raises(ArchiveError, match="a writable path"):
            save_records(place, [], command="", versions={}, board="")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a folder without"):
        load_records(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"format": 99, "records": []}',
        '{"format": true, "records": []}',
        '{"format": 2, "records": {}}',
        '{"format": 1, "records": [{"a": 1}]}',
    ],
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
        assert all(r.cost <= r.default_cost for r in read_records(path))
        assert {(r.core, r.unit) for r in read_records(path)} == {(path.parent.name, "instructions")}
    assert set(shipped_records("cortex-m7")) >= {r.workload for r in read_records(files[0])}
    assert shipped_records("no-such-core") == {}


def test_rules_take_the_shipped_records() -> None:
    """A rule that no longer offers a record's knobs ends the build of who uses the network that it was made for."""
    image = torch.zeros(1, 3, 128, 128)
    network = mobilenet_v2(num_classes=10, fused=True).eval()
    module = tt.build(network, "c -mcpu=cortex-m7", example_inputs=(image,), update=tt.FullTrain())
    shipped = shipped_records("cortex-m7")
    used = [shipped[key] for key in map(workload_key, filter(kind_of, module.unscheduled)) if key in shipped]
    assert len(used) > 50 and {r.rule for r in used} == {"gemm", "windows", "window_weights"}
