"""The subcommand ``tune`` of ``tinytrain``."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvm_tinytrain.cli_network import DEFAULT_SIZE, load_network
from tvm_tinytrain.cli_update import UPDATES, parse_update
from tvm_tinytrain.early_checks import check_folder, check_options, check_output
from tvm_tinytrain.errors import PlanError

_WHOLE = (".pt2", ".onnx", ".relay", ".txt")
"""Files of a whole network, which `build` reads."""
_CLASSES = 10
_EXAMPLE = """example:
  tinytrain tune --network mcunet --board mps2-an500 --trials 64 --update full adaptive tail:19:0.5 -o records/mcunet.json
  tinytrain tune --network net.pt2 --board mps2-an500 -o net.json
  tinytrain compile net.pt2 --records net.json -o net.tar       or in Python: build(..., records="net.json")
The same command goes on where an interrupted one ended, from the outcomes in --work.
Many boards: add --tracker HOST:PORT, see `tinytrain tune-worker --help`.
"""
_WORKER = """example, in three terminals:
  python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190
  tinytrain tune-worker --tracker 127.0.0.1:9190 --board mps2-an500 --count 2
  tinytrain tune --tracker 127.0.0.1:9190 --network mcunet -o mcunet.json
Who reaches a worker can run programs on its machine: use a network that you trust.
"""


def add_tune(commands: Any) -> None:
    """Add the subcommand to the parser of ``tinytrain``."""
    p = commands.add_parser(
        "tune",
        help="better schedules, measured on the board",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--network",
        required=True,
        help="mcunet, mobilenet-v2, proxyless-nas, an int8 backbone's .json, or what compile takes: .pt2, .onnx, .relay",
    )
    p.add_argument("--weights", type=Path, help="state dict (.pt) for a network given by name")
    p.add_argument(
        "--size", type=int, help=f"width and height of the input (default: a file's own, else {DEFAULT_SIZE})"
    )
    p.add_argument("--classes", type=int, help=f"classes of a network given by name (default: {_CLASSES})")
    p.add_argument("--board", default="mps2-an500", help="where candidates run (default: mps2-an500)")
    p.add_argument("--trials", type=int, default=64, help="most candidates of one kernel (default: 64)")
    p.add_argument("--seed", type=int, default=0, help="decides the search (default: 0)")
    p.add_argument(
        "--update",
        nargs="+",
        default=["full"],
        help=f"whose kernels: {UPDATES}, a JSON file with an update plan, or tail:N:S, the first share S of the channels "
        "of the last N layers (default: full)",
    )
    p.add_argument(
        "--work", type=Path, default=Path("build/tune"), help="keeps outcomes (default: build/tune)"
    )
    p.add_argument("--tracker", metavar="HOST:PORT", help="measure on all workers of this RPC tracker")
    p.add_argument("--port", help="where a real board is: a serial device or an address")
    p.add_argument(
        "--jobs", type=int, help="kernels tuned at once (default: on an emulated board one for each core)"
    )
    p.add_argument("-o", "--output", type=Path, required=True, help="file for the records")
    p.add_argument("--json", action="store_true", help="print the summary and all records as JSON")
    p.set_defaults(run=_tune)
    w = commands.add_parser(
        "tune-worker",
        help="measures candidates for `tune --tracker`",
        epilog=_WORKER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    w.add_argument("--tracker", metavar="HOST:PORT", required=True, help="TVM's RPC tracker")
    w.add_argument("--board", default="mps2-an500", help="the board beside it (default: mps2-an500)")
    w.add_argument("--port", help="where a real board is: a serial device or an address")
    w.add_argument("--count", type=int, default=1, help="workers, for emulated boards (default: 1)")
    w.add_argument(
        "--work", type=Path, default=Path("build/tune-worker"), help="images (default: build/tune-worker)"
    )
    w.set_defaults(run=_worker)


def _tune(a: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from tvm_tinytrain.farm import FarmMeasure, Tracker
    from tvm_tinytrain.targets.boards import get_board
    from tvm_tinytrain.tuning import Progress, check_place, check_processes, tune

    check_output(a.output)
    check_folder(a.work)
    given = {"--size": (a.size, 1), "--classes": (a.classes, 1), "--trials": (a.trials, 1), "--seed": (a.seed, 0),
             "--jobs": (a.jobs, 1)}  # fmt: skip
    check_options("tune", {name: pair for name, pair in given.items() if pair[0] is not None})
    _check_network(a)
    measure, board, start = None, get_board(a.board), time.monotonic()
    check_place(board, board.target, a.port, a.tracker is not None)
    at_once = (os.cpu_count() or 1) if board.is_emulated and a.tracker is None else 1
    processes = at_once if a.jobs is None else a.jobs
    check_processes(board, processes, a.tracker is not None)
    if a.tracker is not None:
        tracker = Tracker.parse(a.tracker)
        tracker.wait(board.name)

        def measure(func: Any) -> FarmMeasure:
            return FarmMeasure(func, board, tracker, a.seed)

    modules = [_library(a, text) for text in a.update]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        kernels, trials = bars.add_task("kernels", total=None), bars.add_task("trials", total=None)

        def show(now: Progress) -> None:
            bars.update(kernels, total=now.kernels, completed=now.index)
            bars.update(trials, description=now.kernel, total=now.most, completed=now.trials)

        found = tune(
            modules,
            board=a.board,
            trials=a.trials,
            seed=a.seed,
            work_dir=a.work,
            output=a.output,
            command=a.command_line,
            progress=show,
            measure=measure,
            processes=processes,
            port=a.port,
        )
    own, best = sum(r.default_cost for r in found), sum(r.cost for r in found)
    better = sum(r.cost < r.default_cost for r in found)
    if a.json:
        summary = {
            "output": os.fspath(a.output),
            "board": a.board,
            "unit": found[0].unit if found else None,
            "kernels": len(found),
            "kernels_better": better,
            "default_cost": own,
            "cost": best,
            "records": [asdict(r) for r in found],
        }
        print(json.dumps(summary, indent=1, sort_keys=True))
        return 0
    if found:
        print(f"{better} of {len(found)} kernels are better than the rule's own choice")
        print(
            f"{own:,.0f} -> {best:,.0f} {found[0].unit} over all kernels ({100 * (1 - best / own):.1f} % less)"
        )
    print(f"wrote {os.fspath(a.output)} after {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def _worker(a: argparse.Namespace) -> int:
    from tvm_tinytrain.farm import Tracker, Workers
    from tvm_tinytrain.targets.boards import get_board
    from tvm_tinytrain.tuning import check_place

    check_options("tune-worker", {"--count": (a.count, 1)})
    check_place(get_board(a.board), get_board(a.board).target, a.port, False)
    tracker = Tracker.parse(a.tracker)
    tracker.workers(a.board)  # an error now if there is no tracker
    with Workers(a.board, tracker, a.count, port=a.port, work_dir=a.work):
        print(f"{a.count} worker(s) for {a.board} at {a.tracker}; end with Ctrl-C", flush=True)
        threading.Event().wait()
    return 0


def _library(a: argparse.Namespace, update: str) -> Any:
    import torch

    from tvm_tinytrain.build import build
    from tvm_tinytrain.config import Budget, LastLayer
    from tvm_tinytrain.selection import TaskAdaptive
    from tvm_tinytrain.targets.boards import get_board

    network = _network(a)
    size = DEFAULT_SIZE if a.size is None else a.size
    image = torch.zeros(1, 3, size, size)  # a file of a whole network has its own
    given: dict[str, Any] = {"target": get_board(a.board).target, "example_inputs": (image,), "records": ()}
    if update.startswith("tail:"):
        layers = build(network, update=LastLayer(), **given).layers
        return build(network, update=_tail(update, layers), **given)
    chosen = parse_update("tune", update, also="tail:N:S ")
    if isinstance(chosen, TaskAdaptive):  # a budget that every candidate fits, so that no kernel is left out
        given["budget"] = Budget(memory="64MB", compute=1.0)
    return build(network, update=chosen, **given)


def _network(a: argparse.Namespace) -> Any:
    """A backbone by name with a classifier; a file; or a backbone with given weights, as `evaluate` reads it."""
    from tvm_tinytrain import models

    makers = {
        "mcunet": models.mcunet,
        "mobilenet-v2": models.mobilenet_v2,
        "proxyless-nas": models.proxyless_nas,
    }
    if Path(a.network).suffix in _WHOLE:
        return a.network
    if a.network not in makers or a.weights is not None:
        return load_network(a.network, a.weights)
    classes = _CLASSES if a.classes is None else a.classes
    return makers[a.network](num_classes=classes, fused=True).eval()


def _check_network(a: argparse.Namespace) -> None:
    """PlanError for options that would do nothing: a file of a whole network says them itself."""
    suffix = Path(a.network).suffix
    whole, backbone = suffix in _WHOLE, suffix == ".json" or a.weights is not None
    for name, value, idle in (
        ("--size", a.size, whole),
        ("--weights", a.weights, whole),
        ("--classes", a.classes, whole or backbone),
    ):
        if value is not None and idle:
            found, hint = f"{value} for {a.network}", "leave it out: the file says it"
            if not whole:
                found, hint = f"{value} for a backbone of given weights", "leave it out: it has no classifier"
            raise PlanError("tune", name, found, "none here", hint)


def _tail(text: str, layers: Any) -> Any:
    """The plan that ``tail:N:S`` names."""
    from tvm_tinytrain.plan import UpdatePlan

    try:
        _, layers_text, share_text = text.split(":")
        count, share = int(layers_text), float(share_text)
    except ValueError as error:
        raise PlanError("tune", f"--update {text}", error, "tail:N:S", "e.g. tail:19:0.5") from error
    if not (count >= 1 and 0 < share <= 1):
        raise PlanError("tune", f"--update {text}", text, "N >= 1, 0 < S <= 1", "e.g. tail:19:0.5")
    rows = {layer.id: max(1, round(layer.channels * share)) for layer in layers[-count:]}
    return UpdatePlan.from_channels({layer: tuple(range(k)) for layer, k in rows.items()})
