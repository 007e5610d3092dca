"""The command ``tinytrain``."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm_tinytrain._version import __version__
from tvm_tinytrain.cli_adapt import add_commands as add_adapt
from tvm_tinytrain.cli_boards import add_commands as add_board_commands
from tvm_tinytrain.cli_fewshot import add_commands as add_fewshot_commands
from tvm_tinytrain.cli_tune import add_tune
from tvm_tinytrain.cli_update import UPDATES, parse_update
from tvm_tinytrain.early_checks import check_folder, check_output
from tvm_tinytrain.errors import PlanError, TinyTrainError
from tvm_tinytrain.interrupts import interrupts

_EXAMPLE = """example:
  tinytrain compile network.pt2 --target "c -mcpu=cortex-m7" --update last-layer -o network.tar
  tinytrain report network.tar
  tinytrain bench network.tar --board mps2-an500
Each command's --help ends with an example of its own.
"""
_COMPILE_EXAMPLE = """example:
  tinytrain compile network.pt2 --target "c -mcpu=cortex-m7" --update last-layer --lr 0.01 -o network.tar
  tinytrain compile backbone.pt2 --loss prototypical --accumulate --optimizer adam --update adaptive --memory 256KB --compute 0.15 \\
      -o backbone.tar           (what tinytrain adapt wants)
  tinytrain compile network.pt2 --target "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53" -o network.tar
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. A TinyTrainError becomes one line on stderr and exit code 1."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(given)
    arguments.command_line = shlex.join(["tinytrain", *given])
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no UTF-8
    with interrupts() as stopped:
        try:
            return _run(arguments)
        except Exception:  # TVM makes a RuntimeError of Ctrl-C in a function that it calls
            if not stopped.came:
                raise
            return _interrupted()


def _run(arguments: argparse.Namespace) -> int:
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except TinyTrainError as error:
        print(f"tinytrain: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `tinytrain boards | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        return 1
    except OSError as error:  # what no check can foresee: a disk that is full, a file that is taken away
        print(f"tinytrain: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    print("tinytrain: interrupted", file=sys.stderr)
    return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinytrain",
        description="A compiler for on-device training.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compile(commands)
    add_adapt(commands)
    add_tune(commands)
    add_fewshot_commands(commands)
    add_board_commands(commands)
    return parser


def _add_compile(commands: Any) -> None:
    form = argparse.RawDescriptionHelpFormatter
    p = commands.add_parser(
        "compile", help="network → library archive", epilog=_COMPILE_EXAMPLE, formatter_class=form
    )
    p.add_argument("model", help=".pt2, .onnx, or Relay text (.relay)")
    p.add_argument("-o", "--output", required=True, type=Path, help="archive to write, e.g. network.tar")
    p.add_argument("--target", default="c -mcpu=cortex-m7", help='"c -mcpu=cortex-m7" (default), "host", …')
    p.add_argument("--name", default="model", help="C identifier (default: model)")
    losses = ("cross-entropy", "mse", "bce", "prototypical")
    p.add_argument("--loss", choices=losses, default=losses[0], help="(default: cross-entropy)")
    p.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="sgd", help="(default: sgd)")
    p.add_argument("--lr", type=float, help="learning rate (default: sgd 0.01, adam and adamw 0.001)")
    p.add_argument("--momentum", type=float, default=0.0, help="SGD's momentum (default: 0)")
    p.add_argument("--state", default="float32", help="Adam's moments: float32 (default), bfloat16, int8")
    p.add_argument(
        "--update", default="full", help=f"{UPDATES}, or a JSON file with an update plan (default: full)"
    )
    p.add_argument(
        "--records",
        type=Path,
        help="tuned schedules: a file of tinytrain tune, or a folder of them (default: those of this package)",
    )
    p.add_argument("--memory", help='SRAM budget of the arena, e.g. "256KB"')
    p.add_argument("--recompute", default="auto", help="blocks computed twice: auto (default), lowest, never")
    p.add_argument("--compute", type=float, help="share of FullTrain's backward MACs, of --update adaptive")
    p.add_argument(
        "--accumulate",
        action=argparse.BooleanOptionalAction,
        help="entries accumulate + apply, or step alone (default: step alone for a fixed update)",
    )
    p.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the module after each pass")
    p.add_argument(
        "--print-ir-after-all", action="store_true", help="print the module after each pass, on stderr"
    )
    p.add_argument("--time-passes", action="store_true", help="print seconds per pass")
    p.add_argument("--verify-each", action="store_true", help="check the module after each pass")
    p.add_argument("--json", action="store_true", help="print the metadata as JSON instead of the report")
    p.set_defaults(run=_compile)


def _compile(a: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from tvm_tinytrain import config
    from tvm_tinytrain.build import build
    from tvm_tinytrain.pipeline import Instruments
    from tvm_tinytrain.selection import TaskAdaptive

    check_output(a.output)
    check_folder(a.dump_ir)
    update = parse_update("compile", a.update)
    adaptive = isinstance(update, TaskAdaptive)
    for option, value, fits, hint in (
        ("--momentum", a.momentum or None, a.optimizer == "sgd", "it is SGD's: --optimizer sgd"),
        (
            "--state",
            a.state if a.state != "float32" else None,
            a.optimizer != "sgd",
            "it is Adam's: --optimizer adam",
        ),
        ("--compute", a.compute, adaptive, "a fixed update has its own work: --update adaptive"),
    ):
        if value is not None and not fits:
            raise PlanError("compile", option, value, "none here", hint)
    rate = {} if a.lr is None else {"lr": a.lr}
    optimizers: dict[str, config.Optimizer] = {
        "sgd": config.SGD(momentum=a.momentum, **rate),
        "adam": config.Adam(state=a.state, **rate),
        "adamw": config.AdamW(state=a.state, **rate),
    }
    losses: dict[str, config.Loss] = {
        "cross-entropy": config.CrossEntropy(),
        "mse": config.MSE(),
        "bce": config.BinaryCrossEntropy(),
        "prototypical": config.Prototypical(),
    }
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("import")
        watch = Instruments(
            a.dump_ir,
            a.print_ir_after_all,
            a.verify_each,
            lambda name: progress.update(task, description=name),
        )
        module = build(
            a.model,
            a.target,
            loss=losses[a.loss],
            optimizer=optimizers[a.optimizer],
            update=update,
            budget=config.Budget(memory=a.memory, compute=a.compute),
            accumulate=a.accumulate,
            name=a.name,
            memory=config.MemoryOptions(recompute=a.recompute),
            records=a.records,
            instruments=watch,
        )
    module.export(
        a.output
    )  # before anything is printed: `tinytrain compile ... | head` ends with a full pipe
    if a.json:
        timed = {"pass_seconds": module.pass_seconds} if a.time_passes else {}
        print(json.dumps({"archive": str(a.output), **module.metadata, **timed}, indent=1, sort_keys=True))
        return 0
    if a.time_passes:
        for name, seconds in module.pass_seconds.items():
            print(f"{seconds:8.3f} s  {name}")
    print(module.report())
    print(f"wrote {a.output}")
    return 0
