"""Instructions of forward pass, Fisher pass, TinyTrain step and FullTrain step of the backbones, beside PyTorch on this machine.

On an emulated board the figures are exact counts of executed instructions; where tuned records come with this package for its core, the
same is counted with the rules' own choices. The wall-clock part runs our host build and PyTorch eager in one process, one thread each,
in turn, and compares the least times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from benchmarks.kernel_workloads import NETWORKS
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.session import Session
from tvm_tinytrain.schedules.records import shipped_records
from tvm_tinytrain.targets.boards import get_board

CLASSES = 10
FORWARD_LIMIT, STEP_LIMIT = 2.0, 2.3
"""Instructions per multiply-accumulate asked on the Cortex-M7."""
TINYENGINE_STEP = 106_371_200
"""Instructions of TinyEngine's step of MCUNet with its 49 KB scheme, counted on the same emulated core."""
SPEEDUP = 3.0
HOST_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = parse(_parser(), argv)
    report = Report(options)
    for network in options.network:
        for board in options.board:
            with report.attempt(f"{network} on {board}"):
                for row in on_board(network, board, options):
                    report.rows.append(row)
                    report.save()
        if not options.skip_host:
            with report.attempt(f"{network} on this machine"):
                report.rows += on_host(network, options)
                report.save()
    _check(report)
    _print(report)
    return report.finish()


def _parser() -> argparse.ArgumentParser:
    made = parser("step", __doc__)
    boards = ["mps2-an500", "qemu-aarch64"]
    made.add_argument("--board", nargs="*", default=boards, help="emulated boards (default: %(default)s)")
    made.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    made.add_argument("--size", type=int, default=128, help="height and width of the images")
    made.add_argument(
        "--last",
        type=int,
        default=6,
        help="blocks whose layers the TinyTrain step trains (default: %(default)s)",
    )
    made.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="of their channels, how many are trained (default: %(default)s)",
    )
    made.add_argument(
        "--rounds", type=int, default=15, help="timed calls on this machine (default: %(default)s)"
    )
    made.add_argument(
        "--host-target",
        default="c -mcpu=x86-64-v3",
        help="target of the build that is timed on this machine (default: %(default)s)",
    )
    made.add_argument("--skip-host", action="store_true", help="no wall-clock times")
    return made


def make_network(name: str, options: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    """A fused backbone and one image, both random: instructions hardly depend on values."""
    torch.manual_seed(0)
    network = NETWORKS[name](num_classes=CLASSES, fused=True).eval()
    return network, torch.randn(1, 3, options.size, options.size)


def tiny_plan(layers: Sequence[Any], options: argparse.Namespace) -> tt.UpdatePlan:
    """The first ``share`` of the channels of each layer of the last blocks (three convolutions each), and the head."""
    chosen = layers[-(3 * options.last + 1) :]
    counts = {layer.id: max(1, round(layer.channels * options.share)) for layer in chosen}
    return tt.UpdatePlan.from_channels({layer: tuple(range(k)) for layer, k in counts.items()})


def on_board(name: str, board: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Counts of the four kinds of passes, with the package's records and without."""
    rows = list(counts(name, board, options, None))
    core = get_board(board).target.mcpu
    if shipped_records(core):
        for row, own in zip(rows, counts(name, board, options, ()), strict=True):
            row["own_choice_instructions"] = own["instructions"]
    return rows


def counts(
    name: str, board: str, options: argparse.Namespace, records: tuple[()] | None
) -> Iterator[dict[str, Any]]:
    """Counts of the four kinds of passes; ``records``: see `tvm_tinytrain.build`."""
    network, image = make_network(name, options)
    target = str(get_board(board).target)
    given: dict[str, Any] = {"example_inputs": (image,), "name": "bench", "optimizer": tt.SGD(0.01)}
    given["records"] = records
    full = tt.build(network, target, update=tt.FullTrain(), **given)
    tiny = tt.build(network, target, update=tiny_plan(full.layers, options), **given)
    fisher = tt.build(
        network, target, update=tt.TaskAdaptive(), budget=tt.Budget(memory="8MB", compute=0.15), **given
    )
    wanted = [
        (full, {"forward": "predict", "FullTrain step": "step"}),
        (tiny, {"TinyTrain step": "step"}),
        (fisher, {"Fisher pass": "fisher"}),
    ]
    for module, passes in wanted:
        with Session(module, board=board) as session:
            for what, entry in passes.items():
                if entry == "fisher":
                    session.call("fisher_begin")
                _feed(session, image)
                ticks, macs = session.time(entry), module.metadata["macs"][entry]
                row = {"network": name, "board": board, "pass": what, "instructions": ticks}
                yield {**row, "macs": macs, "per_mac": ticks / macs}


def _feed(session: Session, image: torch.Tensor) -> None:
    roles = {t.role: name for name, t in session.tensors.items() if t.role in ("input", "label")}
    session.write(roles["input"], image.numpy())
    if "label" in roles:
        session.write(roles["label"], np.array([3], np.int32))


def on_host(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Least seconds of a TinyTrain step and a forward pass, ours and PyTorch's in turn."""
    torch.set_num_threads(1)
    network, image = make_network(name, options)
    given: dict[str, Any] = {"example_inputs": (image,), "name": "bench", "optimizer": tt.SGD(0.01)}
    layers = tt.build(network, options.host_target, update=tt.LastLayer(), **given).layers
    module = tt.build(network, options.host_target, update=tiny_plan(layers, options), **given)
    trained = {layers[u.layer].weight for u in module.plan.layers} | {
        layers[u.layer].bias for u in module.plan.layers
    }
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter_name.replace(".", "_") in trained)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.01)
    label = torch.tensor([3])

    def eager_step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), label).backward()
        optimizer.step()

    def eager_forward() -> None:
        with torch.no_grad():
            network(image)

    with InProcess(module, cflags=HOST_FLAGS) as ours:
        pairs = {
            "TinyTrain step": (lambda: ours.step(image.numpy(), 3), eager_step),
            "forward": (lambda: ours.predict(image.numpy()), eager_forward),
        }
        rows = []
        for what, (mine, theirs) in pairs.items():
            own, eager = _paired(mine, theirs, options.rounds)
            rows.append(
                {
                    "network": name,
                    "board": "this machine",
                    "pass": what,
                    "own_ms": own,
                    "eager_ms": eager,
                    "speedup": eager / own,
                }
            )
    return rows


def _paired(mine: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least milliseconds of both, called in turn."""
    least = [float("inf"), float("inf")]
    for turn in range(rounds + 2):
        for index, call in enumerate((mine, theirs)):
            start = time.perf_counter()
            call()
            took = (time.perf_counter() - start) * 1e3
            if turn >= 2:  # the first two turns warm up
                least[index] = min(least[index], took)
    return least[0], least[1]


def _check(report: Report) -> None:
    for row in report.rows:
        where = f"{row['network']} {row['pass']}"
        if row["board"] == "mps2-an500":
            if row["pass"] != "FullTrain step":
                limit = FORWARD_LIMIT if row["pass"] == "forward" else STEP_LIMIT
                report.at_most(f"{where}, {row['board']}", limit, row["per_mac"], "per MAC")
            if "own_choice_instructions" in row:
                own = row["own_choice_instructions"]
                report.at_most(f"{where}, with records", own, row["instructions"], "instructions")
            if row["network"] == "mcunet" and row["pass"] == "TinyTrain step":
                report.at_most(
                    f"{where} against TinyEngine's", TINYENGINE_STEP, row["instructions"], "instructions"
                )
        if row["board"] == "this machine" and row["pass"] == "TinyTrain step":
            report.at_least(f"{where}, times PyTorch eager", SPEEDUP, row["speedup"])


def _print(report: Report) -> None:
    counted = [r for r in report.rows if "instructions" in r]
    print_table(
        "Instructions",
        ["network", "board", "pass", "without records", "instructions", "MACs", "per MAC"],
        [
            [
                r["network"],
                r["board"],
                r["pass"],
                r.get("own_choice_instructions"),
                r["instructions"],
                r["macs"],
                r["per_mac"],
            ]
            for r in counted
        ],
    )
    timed = [r for r in report.rows if "speedup" in r]
    if timed:
        print_table(
            "This machine, one thread, least of all rounds",
            ["network", "pass", "own ms", "PyTorch eager ms", "times"],
            [[r["network"], r["pass"], r["own_ms"], r["eager_ms"], r["speedup"]] for r in timed],
        )


if __name__ == "__main__":
    sys.exit(main())
