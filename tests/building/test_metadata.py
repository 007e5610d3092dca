"""What is known about a library: metadata.json, the report, the archive."""

from __future__ import annotations

import importlib.metadata
import json
import math
import operator
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.emit.libraries import M7, Small, library, small
from tvm_tinytrain._version import __version__
from tvm_tinytrain.build import TrainModule, build, load
from tvm_tinytrain.config import Adam, BiasOnly, Budget, FullTrain, LastLayer, Update
from tvm_tinytrain.emit.model_library import pack
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.reporting import Report
from tvm_tinytrain.selection import TaskAdaptive

PLAN = UpdatePlan((LayerUpdate(0, (1,)), LayerUpdate(2, (0, 1), (1,), bias=False), LayerUpdate(3, (0, 2))))


def test_file_is_the_metadata_in_canonical_form() -> None:
    module = library()
    text = module.files["metadata.json"].decode()
    assert json.loads(text) == json.loads(json.dumps(module.metadata))
    assert text == json.dumps(module.metadata, indent=1, sort_keys=True) + "\n"


def test_options_versions_and_plan() -> None:
    metadata = library(update=PLAN, optimizer=Adam(0.5)).metadata
    options = metadata["options"]
    assert options["target"] == M7
    assert options["optimizer"] == {
        "kind": "Adam",
        "fields": {"lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "state": "float32"},
    }
    assert (options["name"], options["accumulate"]) == ("small", False)
    assert metadata["versions"]["tvm_tinytrain"] == __version__
    assert metadata["versions"]["apache-tvm"] == importlib.metadata.version("apache-tvm")
    assert metadata["plan"] == json.loads(PLAN.to_json())
    assert metadata["plan_digest"] == PLAN.digest
    assert metadata["trained_weights"] == 1 * 9 + 2 * 1 + 2 * 2
    assert metadata["digest"] != library().metadata["digest"]
    assert metadata["digest"].encode() in library(update=PLAN, optimizer=Adam(0.5)).files["tt_small.c"]


def test_the_training_block_names_rows_and_bytes() -> None:
    metadata = library(update=PLAN, optimizer=Adam(0.5)).metadata
    training = metadata["training"]
    assert (training["selection"], training["plan_digest"]) == ("fixed", PLAN.digest)
    rows = {row["layer"]: row for row in training["trainable"]}
    assert (
        rows[0]["ranges"] == [[1, 2]]
        and rows[2]["ranges"] == [[0, 2]]
        and rows[3]["ranges"] == [[0, 1], [2, 3]]
    )
    assert rows[2]["bias"] is None and rows[2]["input_ranges"] == [[1, 2]] and rows[0]["input_ranges"] is None
    assert {row["weight"] for row in training["trainable"]} <= {
        layer["weight"] for layer in metadata["layers"]
    }
    state = [t["bytes"] for t in metadata["tensors"] if t["role"] == "state"]
    assert training["optimizer_bytes"] == sum(state) > 0
    assert training["pools"]["sram"]["arena_bytes"] == metadata["memory"]["arena_bytes"]


@pytest.mark.parametrize("budget", [None, Budget(memory=4000)])
def test_figures_of_a_task_adaptive_library_count_its_rows(budget: Budget | None) -> None:
    update = TaskAdaptive(candidates=2)
    inputs = (torch.zeros(1, *Small.shape),)
    options = {"optimizer": Adam(0.5), "accumulate": True, "budget": budget}
    metadata = build(small(), M7, example_inputs=inputs, update=update, **options).metadata
    training, memory, adaptive = metadata["training"], metadata["memory"], metadata["adaptive"]
    trained = metadata["trained_weights"] + sum(
        layer["weight_shape"][0] for layer in metadata["layers"][-2:] if layer["bias"]
    )
    hyper = next(t["bytes"] for t in metadata["tensors"] if t["name"] == "hyper")
    assert training["gradient_bytes"] == 4 * trained
    assert training["optimizer_bytes"] == 8 * trained + hyper
    rows = sum(c["channels"] * c["channel_bytes"] for c in adaptive["candidates"])
    bound = memory["lower_bound_bytes"]
    if budget is None:
        assert rows < bound <= memory["arena_bytes"]
    else:
        assert bound <= adaptive["activation_bytes"][-1] < memory["arena_bytes"]


def test_a_report_says_what_trained_channels_take() -> None:
    """No entry's peak shows them, and the arena is larger than any of these."""
    options = {"optimizer": Adam(0.5), "example_inputs": (torch.zeros(1, *Small.shape),)}
    module = build(small(), M7, update=TaskAdaptive(candidates=2), **options)
    adaptive, training = module.metadata["adaptive"], module.metadata["training"]
    rows = sum(c["channels"] * c["channel_bytes"] for c in adaptive["candidates"])
    gradients, text = training["gradient_bytes"], module.report()
    moments = f"optimizer state {2 * gradients}, lists of channels 20"  # of 2 and 3 channels
    assert f"{rows} B for all of them (weights {gradients}, gradients {gradients}, {moments})" in text
    assert "the device chooses among: 2 of 4 layers" in text and " trained: " not in text
    assert re.findall(r"(?m)^  +\d  .*?\d  (\S*/\d)$", text) == ["0/2", "0/2", "?/2", "?/3"]
    entries = [name for name, macs in module.metadata["macs"].items() if macs]
    assert re.findall(r"(?m)^  (\w+): peak \d+ B, at most \d+ multiply", text) == entries
    assert "nothing can be trained" not in text
    before, costs = adaptive["activation_bytes"], [c["channel_bytes"] for c in adaptive["candidates"]]
    least = min(map(operator.add, before, costs))
    for size, fits in ((least // 8 * 8, False), (least + 7, True)):
        tight = build(small(), M7, update=TaskAdaptive(candidates=2), budget=Budget(memory=size), **options)
        assert (f"in this arena: one channel takes {least} B" in tight.report()) is not fits


@pytest.mark.parametrize(
    "update",
    [FullTrain(), LastLayer(), TaskAdaptive(candidates=2), TaskAdaptive(criterion="l2", candidates=2)],
)
def test_flash_is_what_the_parameters_file_holds(update: Update | TaskAdaptive) -> None:
    module = build(
        small(), M7, example_inputs=(torch.zeros(1, *Small.shape),), optimizer=Adam(), update=update
    )
    arrays = re.findall(
        r"const (float|int32_t|uint8_t) \w+\[(\d+)\] = ", module.files["tt_model_params.c"].decode()
    )
    flash = module.metadata["training"]["pools"]["flash"]
    constant = {t["name"]: t["bytes"] for t in module.metadata["tensors"] if t["offset"] is None}
    assert sum({"float": 4, "int32_t": 4, "uint8_t": 1}[kind] * int(count) for kind, count in arrays) == sum(
        flash.values()
    )
    assert (
        flash["constant_bytes"] == sum(constant.values()) == module.metadata["memory"]["flash_constant_bytes"]
    )
    assert f"initial values {flash['initial_bytes']} B" in module.report() and flash["initial_bytes"] > 0


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.relu(self.embed(x))))


@pytest.mark.parametrize(
    ("update", "also", "weights", "channels", "others"),
    [
        (LastLayer(), ("embed_weight",), 80, ["8/8", "4/4"], []),
        (LastLayer(), ("norm_weight", "norm_bias"), 32, ["0/8", "4/4"], ["norm_bias", "norm_weight"]),
        (BiasOnly(last=1), (), 0, ["0/8", "bias 4/4"], []),
        (BiasOnly(last=1), ("head_weight",), 32, ["0/8", "4/4"], []),
        (UpdatePlan.from_channels({1: [0, 2]}), ("head_weight",), 32, ["0/8", "4/4, bias 2/4"], []),
        (UpdatePlan.from_channels({1: [0, 2]}), ("head_bias",), 16, ["0/8", "2/4, bias 4/4"], []),
    ],
)
def test_what_is_trained_beside_the_plan_is_named(
    update: Update, also: tuple[str, ...], weights: int, channels: list[str], others: list[str]
) -> None:
    module = build(Normed(), "host", example_inputs=(torch.zeros(1, 6),), update=update, also_train=also)
    assert module.metadata["trained_weights"] == weights
    assert module.metadata["training"]["others"] == others
    assert module.metadata["options"]["also_train"] == list(also)
    report, page = module.report(), Report(module).html()
    trained = sum(not channel.startswith("0/") for channel in channels)
    assert f"trained: {trained} of 2 layers, {weights} weights\n" in report
    assert re.findall(r"(?m)^  +\d  (?:embed|head)_weight .*?\d  (\S.*)$", report) == channels
    assert re.findall(r"<td>((?:bias )?\d/\d[^<]*)</td>", page) == channels
    assert f"trained layers</span><b>{trained} of 2" in page
    beside = "rained beside the layers: " + ", ".join(others)
    assert (beside in report, beside in page) == (bool(others), bool(others))


def test_parameters_of_no_layer_are_named() -> None:
    """They have a gradient, but no plan selects them: nobody shall take them for trained."""

    def made(update: Update | TaskAdaptive, *also: str) -> TrainModule:
        net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        return build(net, M7, example_inputs=(torch.zeros(1, 4),), update=update, also_train=also)

    assert library().metadata["training"]["untrained"] == []
    for update in (FullTrain(), TaskAdaptive(candidates=1)):
        module = made(update)
        assert module.metadata["training"]["untrained"] == ["v1_bias", "v1_weight"]
        assert "of no layer, not trained: v1_bias, v1_weight" in module.report()
    module = made(FullTrain(), "v1_bias", "v1_weight")
    assert module.metadata["training"]["untrained"] == [] and "no layer" not in module.report()


def test_statistics_of_a_batch_norm_are_no_parameters() -> None:
    """What is named as not trained is what `also_train` takes."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module = build(net, M7, example_inputs=(torch.zeros(1, 4),))
    assert module.metadata["training"]["untrained"] == ["v2_bias", "v2_weight"]
    build(net, M7, example_inputs=(torch.zeros(1, 4),), also_train=("v2_bias", "v2_weight"))


def test_tensors_lie_in_the_arena_and_add_up() -> None:
    module = library(accumulate=True)
    memory = module.metadata["memory"]
    sizes = {"float32": 4, "int32": 4, "uint8": 1}
    by_role: dict[str, int] = {}
    for t in module.metadata["tensors"]:
        assert t["bytes"] == math.prod(t["shape"]) * sizes[t["dtype"]]
        by_role[t["role"]] = by_role.get(t["role"], 0) + t["bytes"]
        if t["offset"] is not None:
            assert t["offset"] % 4 == 0 and t["offset"] + t["bytes"] <= memory["arena_bytes"]
    assert by_role == memory["bytes_by_role"]
    assert memory["arena_bytes"] == max(e["peak_bytes"] for e in memory["entries"].values())
    assert memory["lower_bound_bytes"] <= memory["arena_bytes"]
    macro = f"#define TT_SMALL_ARENA_BYTES {memory['arena_bytes']}\n".encode()
    assert macro in module.files["tt_small.h"]


def test_layers_and_multiply_accumulates() -> None:
    metadata = library().metadata
    assert [(la["id"], la["weight"], la["bias"]) for la in metadata["layers"]] == [
        (0, "conv_weight", "conv_bias"),
        (1, "depthwise_weight", "depthwise_bias"),
        (2, "point_weight", "point_bias"),
        (3, "head_weight", "head_bias"),
    ]
    forward = sum(la["macs"] for la in metadata["layers"])
    assert forward == 16 * 2 * 9 + 16 * 2 * 9 + 16 * 2 * 2 + 3 * 2
    padding = 2 * (16 * 9 - 10 * 10)  # of two 4×4 planes under 3×3 windows, 10 × 10 taps each lie inside
    assert (
        metadata["macs"]["predict"] == forward - padding
    )  # the depthwise kernel leaves out taps in the padding


def test_report_names_what_matters() -> None:
    module = library(update=PLAN)
    text = module.report()
    memory = module.metadata["memory"]
    for expected in (
        "small for c -mcpu=cortex-m7",
        "3 of 4 layers",
        f"SRAM arena {memory['arena_bytes']} B",
        f"flash constants {memory['flash_constant_bytes']} B",
        "conv_weight",
        "2×1×3×3",
        "1/2",
        "0/2",
        "2/3",
    ):
        assert expected in text, expected
    for entry, info in memory["entries"].items():
        assert f"{entry}: peak {info['peak_bytes']} B" in text


def test_archive_round_trip(tmp_path: Path) -> None:
    module = library(update=PLAN)
    first, second = module.export(tmp_path / "a.tar"), module.export(tmp_path / "b.tar")
    assert first.read_bytes() == second.read_bytes()
    back = load(first)
    assert (back.name, back.files, back.plan, back.target) == (
        module.name,
        module.files,
        module.plan,
        module.target,
    )
    assert back.report() == module.report()
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar", "b.tar"}


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_archives_are_refused(tmp_path: Path, damage: str) -> None:
    path = library().export(tmp_path / "a.tar")
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 3], "text": b"no archive", "empty": b""}[damage])
    with pytest.raises(ArchiveError, match=r"load: .*a\.tar: found .*; allowed"):
        load(path)


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    """A tar has no digest of what its members hold: one other digit of a weight is another network."""
    path = library().export(tmp_path / "a.tar")
    whole = path.read_bytes()
    for name, member in members(path).items():
        content = bytearray(whole)
        content[member.offset_data + member.size // 2] ^= 1
        path.write_bytes(content)
        says = "" if name == "SHA256SUMS" else f"altered {name}; allowed the files of its SHA256SUMS"
        with pytest.raises(ArchiveError, match=rf"load: .*a\.tar: found .*{says}"):
            load(path)


def test_an_archive_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = library().export(tmp_path / "a.tar")
    whole, found = path.read_bytes(), members(path)
    for name, member in found.items():
        path.write_bytes(whole[: member.offset] + bytes(1024))
        with pytest.raises(ArchiveError, match=f"missing .*{name}" if name != "SHA256SUMS" else f"no {name}"):
            load(path)
    path.write_bytes(whole[: found["tt_small_params.c"].offset])
    with pytest.raises(ArchiveError, match=r"found missing tt_small_params\.c; allowed"):
        load(path)


def test_a_file_more_or_less_in_an_archive_is_named(tmp_path: Path) -> None:
    path = library().export(tmp_path / "a.tar")
    (tmp_path / "more.c").write_text("int more;")
    with tarfile.open(path, "a") as tar:
        tar.add(tmp_path / "more.c", "more.c")
    with pytest.raises(ArchiveError, match=r"found unknown more\.c; allowed"):
        load(path)
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "more.c", "more.c")
    with pytest.raises(ArchiveError, match="found no SHA256SUMS; allowed the digests of all files"):
        load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "metadata.json with a list; allowed an object"),
        ("[" * 100_000, "maximum recursion"),
        ("{", "Expecting"),
        ("{}", "found format None; allowed 1"),
        ('{"format": true}', "found format True; allowed 1"),
        ('{"format": 1}', "name of metadata.json: found nothing; allowed text"),
        ({"tensors": 7}, "tensors of metadata.json: found int; allowed a list"),
        ({"plan": {}}, "metadata.json: found update plan"),
        ({"target": {"kind": "x"}}, "metadata.json: found target"),
    ],
)
def test_metadata_of_another_shape_is_refused(tmp_path: Path, text: str | dict[str, Any], says: str) -> None:
    module = library()
    described = text if isinstance(text, str) else json.dumps({**module.metadata, **text})
    path = tmp_path / "a.tar"
    path.write_bytes(pack({**module.files, "metadata.json": described.encode()}))
    with pytest.raises(ArchiveError, match=re.escape(says)):
        load(path)


def test_a_report_of_metadata_that_says_less_is_refused(tmp_path: Path) -> None:
    module = library()
    path = tmp_path / "a.tar"
    described = json.dumps({**module.metadata, "training": {}}).encode()
    path.write_bytes(pack({**module.files, "metadata.json": described}))
    with pytest.raises(ArchiveError, match=r"report: small: found KeyError: 'trainable'; allowed"):
        load(path).report()


def test_write_and_export_leave_nothing_half_written(tmp_path: Path) -> None:
    module = library()
    assert {p.name for p in module.write(tmp_path / "new" / "folder").iterdir()} == set(module.files)
    (tmp_path / "file").write_text("in the way")
    for call in (lambda: module.write(tmp_path / "file"), lambda: module.write(tmp_path / "file" / "below")):
        with pytest.raises(ArchiveError, match=r"write: .*file.*: found .*; allowed a writable folder"):
            call()
    with pytest.raises(ArchiveError, match=r"export: .*: found .*; allowed a writable path"):
        module.export(tmp_path / "file" / "a.tar")
    blocked = tmp_path / "blocked"
    (blocked / "tt_small.h").mkdir(parents=True)  # one of the files cannot be written
    with pytest.raises(ArchiveError, match="blocked"):
        module.write(blocked)
    assert not [p for p in blocked.iterdir() if p.suffix == ".partial"]
    assert (tmp_path / "file").read_text() == "in the way"


def _embedding(activation: torch.nn.Module, size: int = 8, stride: int = 1) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    convs = torch.nn.Conv2d(1, 3, 3, stride, 1), torch.nn.Conv2d(3, 4, 1)
    layers = (convs[0], activation, convs[1], torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.export.export(torch.nn.Sequential(*layers).eval(), (torch.zeros(1, 1, size, size),))


def test_the_digest_tells_networks_of_equal_weights_apart(tmp_path: Path) -> None:
    """A checkpoint, or results of an evaluation, of one of them are not the other's."""
    relu = torch.nn.ReLU()
    torch.export.save(_embedding(relu), tmp_path / "net.pt2")
    networks = [
        tmp_path / "net.pt2",
        tmp_path / "net.pt2",
        _embedding(relu),
        _embedding(torch.nn.ReLU6()),
        _embedding(torch.nn.Sigmoid()),
        _embedding(relu, size=16),
        _embedding(relu, stride=2),
    ]
    digests = [build(network, M7, update=LastLayer()).metadata["digest"] for network in networks]
    assert len(set(digests[:3])) == 1 and len(set(digests)) == 5
