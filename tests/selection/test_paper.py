"""TinyTrain's printed figures come out of its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cost_tables
from tests.selection.problems import backbone_costs
from tvm_tinytrain.selection import PaperAccounting, last_layer, sparse_update
from tvm_tinytrain.selection.paper import (
    paper_backward_macs,
    paper_full_train_macs,
    paper_memory_bytes,
    paper_peak_bytes,
    paper_trained_weights,
)

MB = 1 << 20


@pytest.mark.parametrize(
    ("name", "peak_kb", "last_weights", "last_mb"),
    [
        ("mcunet", 640, 92_160, 2.03125),
        ("mobilenet_v2", 896, 50_176, 1.640625),
        ("proxyless_nas", 512, 36_864, 1.0625),
    ],
)
def test_forward_peak_and_last_layer(name: str, peak_kb: int, last_weights: int, last_mb: float) -> None:
    network = backbone_costs(name)
    assert paper_peak_bytes(network) == peak_kb * 1024
    assert paper_trained_weights(network, last_layer(network)) == last_weights
    assert paper_memory_bytes(network, last_layer(network)) == last_mb * MB


@pytest.mark.parametrize(
    ("name", "scheme", "megabytes", "mega_macs"),
    [
        ("mcunet", "mcunet-99kb", 1.426, 11.882),
        ("mobilenet_v2", "mbv2-99kb", 1.728, 8.457),
        ("proxyless_nas", "proxyless-98kb", 1.461, 7.904),
    ],
)
def test_sparse_update(name: str, scheme: str, megabytes: float, mega_macs: float) -> None:
    network = backbone_costs(name)
    plan = sparse_update(network, scheme)
    assert paper_memory_bytes(network, plan) / MB == pytest.approx(megabytes, abs=5e-4)
    assert paper_backward_macs(network, plan) / 1e6 == pytest.approx(mega_macs, abs=5e-4)


def test_mcunet_scheme_trains_52480_weights() -> None:
    network = backbone_costs("mcunet")
    assert paper_trained_weights(network, sparse_update(network, "mcunet-99kb")) == 52_480


@pytest.mark.parametrize(("name", "depth"), [("mcunet", 13), ("mobilenet_v2", 19), ("proxyless_nas", 22)])
def test_depth_that_the_compute_budget_allows(name: str, depth: int) -> None:
    """15 % of FullTrain's backward pass pays for the dX chain of this many last layers."""
    network = backbone_costs(name)
    budget = paper_full_train_macs(network) * 15 // 100
    chains = [sum(layer.forward_macs for layer in network.chain([layer.id])) for layer in network]
    assert sum(chain <= budget for chain in chains) == depth


def test_cost_tables_agree_with_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost_tables.main(["--json", str(tmp_path / "tables.json")]) == 0
    assert "43 of 43 checks hold" in capsys.readouterr().out


def test_rows_without_a_known_rule_give_a_reason() -> None:
    """What is printed without a check says why; what has no reason is checked."""
    rows = cost_tables.rows()
    assert len(rows) == 2 * 15 + 17 + 18
    assert all(row["rule_known"] == (row["reason"] == "") for row in rows)
    unknown = {(row["network"], row["method"]) for row in rows if row["reason"] and row["table"] == 2}
    tiny = {(name, method) for name in cost_tables.NETWORKS for method in ("TinyTL", "TinyTrain")}
    others = {("mcunet", "LastLayer"), ("mobilenet_v2", "SparseUpdate"), ("proxyless_nas", "SparseUpdate")}
    assert unknown == tiny | others


def test_accounting_agrees_with_the_functions_on_plans() -> None:
    network = backbone_costs("proxyless_nas")
    accounting = PaperAccounting(network)
    counts = {60: 384, 57: 10}
    plan = last_layer(network)
    assert accounting.memory_bytes({60: 384}) == paper_memory_bytes(network, plan)
    assert accounting.backward_macs({60: 384}) == paper_backward_macs(network, plan)
    assert accounting.backward_macs(counts) > accounting.backward_macs({60: 384})
