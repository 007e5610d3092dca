"""The subcommands ``evaluate``, ``meta-train`` and ``report`` of ``tinytrain``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_tinytrain.cli_network import image_size, load_network
from tvm_tinytrain.early_checks import check_folder, check_options, check_output
from tvm_tinytrain.errors import ArchiveError, ImportModelError, PlanError

if TYPE_CHECKING:
    from tvm_tinytrain.fewshot.episodes import Sampler
    from tvm_tinytrain.fewshot.ranks import Ranks

_EVALUATE = """example:
  tinytrain evaluate --network backbone.json --data domains/birds domains/signs --scheme mcunet-99kb \\
      --methods none,lastlayer,tinytrain,exact --episodes 20 --state build/birds.json
The network: structure.json beside arrays.npz of an int8 backbone, a .pt2 of torch.export whose output is the
embedding, or a backbone of this package by name (mcunet, mobilenet-v2, proxyless-nas), with --weights or without.
Over machines: torchrun --nnodes 2 --nproc-per-node 1 --rdzv-endpoint HOST:29500 ... -m tvm_tinytrain evaluate ...
(each rank runs its share of the tasks; rank 0 prints the table).
"""
_META_TRAIN = """example:
  tinytrain meta-train --network mcunet --weights imagenet.pt --data miniimagenet/train -o build/meta
The same command goes on from the last checkpoint of the folder after an interruption.
"""
_REPORT = """example:
  tinytrain report network.tar                                  (text)
  tinytrain report network.tar --html report.html --session session.json --accuracy build/accuracy.json
"""
_RAW = argparse.RawDescriptionHelpFormatter


def add_commands(commands: Any) -> None:
    """Add the subcommands to the parser of ``tinytrain``."""
    _add_evaluate(commands)
    _add_meta_train(commands)
    _add_report(commands)


def _network_options(p: argparse.ArgumentParser, size: str) -> None:
    p.add_argument("--network", required=True, help="file or name, see below")
    p.add_argument("--weights", type=Path, help="state dict (.pt) for a network given by name")
    p.add_argument("--size", type=int, help=f"width and height of the input (default: {size})")


def _sampler_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--ways", type=int, help="classes of a task (default: 5)")
    p.add_argument("--shots", type=int, help="support samples of a class (default: 5)")
    p.add_argument(
        "--various", action="store_true", help="Meta-Dataset's various-way-various-shot sampler instead"
    )


def _sampler(stage: str, a: argparse.Namespace, max_support: int | None) -> Sampler:
    """The sampler asked for; PlanError for an option of the other one."""
    from tvm_tinytrain.fewshot.episodes import FixedWays, VariousWays

    given = {"--ways": a.ways, "--shots": a.shots} if a.various else {"--max-support": max_support}
    for name, value in given.items():
        if value is not None:
            found = f"{value} beside --various" if a.various else f"{value} without --various"
            hint = "--various draws ways and shots by itself" if a.various else "it is an option of --various"
            raise PlanError(stage, name, found, "nothing", hint)
    if a.various:
        return VariousWays() if max_support is None else VariousWays(max_support=max_support)
    return FixedWays(5 if a.ways is None else a.ways, 5 if a.shots is None else a.shots)


def _add_evaluate(commands: Any) -> None:
    p = commands.add_parser(
        "evaluate", help="accuracy of every method on your images", epilog=_EVALUATE, formatter_class=_RAW
    )
    _network_options(p, "a .pt2's own, else 128")
    p.add_argument(
        "--data", required=True, nargs="+", type=Path, metavar="DIR", help="folders of class folders"
    )
    p.add_argument(
        "--group-separator", help='file names "<group><separator>…": groups are kept apart, e.g. "_"'
    )
    p.add_argument(
        "--methods",
        default="none,lastlayer,tinytrain,exact,fulltrain",
        help="comma-separated, of none, lastlayer, sparseupdate (with --scheme), tinytl, adapterdrop25, adapterdrop, adapterdrop75,"
        " tinytrain, fisher, fisher/memory, fisher/compute, random, exact, fulltrain (default: %(default)s)",
    )
    p.add_argument("--scheme", help="static scheme of sparseupdate, e.g. mcunet-99kb")
    p.add_argument(
        "--episodes", type=int, default=20, help="tasks for each data set and sampler (default: 20)"
    )
    _sampler_options(p)
    p.add_argument("--max-support", type=int, help="support samples of --various (default: 500)")
    p.add_argument(
        "--rates", default="0,1e-4,1e-3,1e-2", help="learning rates to choose from (default: %(default)s)"
    )
    p.add_argument(
        "--rate-by",
        choices=("domain", "task"),
        default="domain",
        help="what a rate is chosen for (default: domain)",
    )
    p.add_argument("--iterations", type=int, default=40, help="steps of an adaptation (default: 40)")
    p.add_argument("--memory", default="1MB", help="SRAM budget of the task-adaptive methods (default: 1MB)")
    p.add_argument(
        "--compute", type=float, default=0.15, help="their share of FullTrain's backward MACs (default: 0.15)"
    )
    p.add_argument(
        "--candidates",
        choices=("auto", "expansions", "all"),
        default="auto",
        help="what they choose from in the last 18 layers: the expansions of inverted bottlenecks, all layers, or the"
        " expansions where there are any (auto, default)",
    )
    told = os.environ.get("LOCAL_WORLD_SIZE", "")  # by torchrun: these ranks share this machine's cores
    ranks_here = max(1, int(told)) if told.isdecimal() else 1
    p.add_argument(
        "--processes",
        type=int,
        default=max(1, (os.cpu_count() or 1) // ranks_here),
        help="tasks at once (default: one for each core)",
    )
    p.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
    p.add_argument(
        "--state",
        type=Path,
        help="keeps finished tasks; the same command goes on from it. Compiled libraries lie in libraries/ beside it"
        " (default: in build/evaluate)",
    )
    printed = p.add_mutually_exclusive_group()
    printed.add_argument(
        "--format", choices=("text", "csv", "json"), default="text", help="what is printed (default: text)"
    )
    printed.add_argument(
        "--json", dest="format", action="store_const", const="json", help="the same as --format json"
    )
    p.set_defaults(run=_evaluate)


def _evaluate(a: argparse.Namespace) -> int:
    from tvm_tinytrain.fewshot.ranks import Ranks

    least = {
        "--episodes": (a.episodes, 1),
        "--processes": (a.processes, 1),
        "--iterations": (a.iterations, 0),
    }
    check_options("evaluate", {**least, "--seed": (a.seed, 0)})
    with Ranks.joined() as ranks:  # before all that one of them may fail at, so that the others are told
        return _evaluate_as(ranks, a)


def _evaluate_as(ranks: Ranks, a: argparse.Namespace) -> int:
    from dataclasses import replace
    from functools import partial

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tvm_tinytrain.config import Budget
    from tvm_tinytrain.fewshot.datasets import from_folder
    from tvm_tinytrain.fewshot.evaluate import Contest, evaluate
    from tvm_tinytrain.fewshot.methods import ADAPTIVE, build_methods
    from tvm_tinytrain.fewshot.results import Row, as_csv, as_text
    from tvm_tinytrain.fewshot.tasks import AdaptOptions
    from tvm_tinytrain.micro.in_process import InProcess

    check_output(a.state)
    folder = Path("build") / "evaluate" if a.state is None else a.state.parent / "libraries"
    check_folder(folder)
    steps = {"iterations": a.iterations, "tuning_iterations": a.iterations}
    options = AdaptOptions(**steps, rates=_rates(a.rates), rate_by=(a.rate_by,))
    sampler = _sampler("evaluate", a, a.max_support)
    network = load_network(a.network, a.weights)
    size = image_size("evaluate", network, a.size)
    datasets = tuple(from_folder(d, size, group_separator=a.group_separator) for d in a.data)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("build", total=None)
        methods = build_methods(
            network,
            (torch.zeros(1, 3, size, size),),
            [m.strip() for m in a.methods.split(",") if m.strip()],
            scheme=a.scheme,
            budget=Budget(a.memory, a.compute),
            task_adaptive=replace(ADAPTIVE, layer_kind=a.candidates),
        )
        contest = Contest(Path(a.network).stem, methods, datasets, (sampler,), a.episodes, options, a.seed)

        def progress(done: int, total: int) -> None:
            shown.update(task, description="tasks", completed=done, total=total)

        load = partial(InProcess, build_dir=folder)
        results = evaluate(contest, load, path=a.state, processes=a.processes, progress=progress)
    rows = results.rows()
    for name, count in results.fits_nothing().items() if a.iterations else ():
        print(
            f"{name}: no channel fits the budgets in {count} tasks; nothing is trained there", file=sys.stderr
        )
    if ranks.rank == 0:
        printed: dict[str, Callable[[Sequence[Row]], str]] = {
            "text": as_text,
            "csv": as_csv,
            "json": lambda r: json.dumps([asdict(x) for x in r], indent=1),
        }
        print(printed[a.format](rows))
    return 0


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError("evaluate", "--rates", text, "numbers and commas", "e.g. 0,1e-4,1e-3") from error


def _add_meta_train(commands: Any) -> None:
    p = commands.add_parser(
        "meta-train", help="ProtoNet on episodes of many classes", epilog=_META_TRAIN, formatter_class=_RAW
    )
    _network_options(p, "128")
    p.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder of class folders to train on"
    )
    p.add_argument(
        "--validate", type=Path, metavar="DIR", help="other classes: the best epoch by them is kept"
    )
    p.add_argument(
        "-o", "--output", required=True, type=Path, help="folder of checkpoints and the exported network"
    )
    p.add_argument("--epochs", type=int, default=100, help="(default: 100)")
    p.add_argument("--episodes", type=int, default=2000, help="tasks in an epoch (default: 2000)")
    p.add_argument(
        "--rate", type=float, default=5e-5, help="highest learning rate, 1e-6 or more (default: 5e-5)"
    )
    p.add_argument("--warmup", type=int, help="epochs of warm-up (default: 5, or all but one of fewer)")
    _sampler_options(p)
    p.add_argument("--device", default="cpu", help='"cpu" (default) or "cuda"')
    p.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
    p.add_argument("--json", action="store_true", help="print all epochs and what was written as JSON")
    p.set_defaults(run=_meta_train)


def _meta_train(a: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tvm_tinytrain.fewshot.datasets import from_folder
    from tvm_tinytrain.fewshot.meta_train import EpochReport, MetaTrainOptions, meta_train

    if a.warmup is not None and not 0 <= a.warmup < max(1, a.epochs):
        hint = f"leave some of --epochs {a.epochs} for the cosine"
        raise PlanError("meta-train", "--warmup", a.warmup, f"0 … {max(1, a.epochs) - 1}", hint)
    options = MetaTrainOptions(
        epochs=a.epochs,
        episodes=a.episodes,
        rate=a.rate,
        warmup_epochs=a.warmup,
        sampler=_sampler("meta-train", a, None),
        seed=a.seed,
    )
    check_folder(a.output)
    check_output(a.output / "network.pt2")
    model = load_network(a.network, a.weights)
    if isinstance(model, str):
        hint = "name a backbone, or an int8 backbone's .json"
        raise ImportModelError("meta-train", a.network, "an exported program", "a PyTorch module", hint)
    size = image_size("meta-train", model, a.size)
    train = from_folder(a.data, size)
    held_out = None if a.validate is None else from_folder(a.validate, size)
    origin = {"network": Path(a.network).stem, "size": size}
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("meta-train", total=options.epochs * options.episodes)

        def progress(step: int, loss: float) -> None:
            shown.update(task, completed=step, description=f"loss {loss:.3f}")

        def on_epoch(report: EpochReport) -> None:
            shown.console.print(report.text())

        trained = meta_train(
            model,
            train,
            a.output,
            options,
            validation=held_out,
            device=a.device,
            origin=origin,
            progress=progress,
            on_epoch=on_epoch,
        )
    exported = trained.export(a.output / "network.pt2", (1, 3, size, size))
    if a.json:
        epochs = [asdict(report) for report in trained.history]
        print(json.dumps({"network": str(exported), "scale": trained.scale, "epochs": epochs}, indent=1))
    else:
        print(f"wrote {exported}")
    return 0


def _add_report(commands: Any) -> None:
    p = commands.add_parser("report", help="what an archive holds", epilog=_REPORT, formatter_class=_RAW)
    p.add_argument("archive", type=Path, nargs="?", help="model library archive")
    p.add_argument("--json", action="store_true", help="print the metadata as JSON")
    p.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page")
    p.add_argument("--pictures", action="store_true", help="with --html: write each picture as PNG too")
    p.add_argument("--session", type=Path, metavar="FILE", help="show an adaptation: a SessionRecord's file")
    p.add_argument(
        "--accuracy", type=Path, metavar="FILE", help="show rows of evaluate or benchmarks.accuracy (JSON)"
    )
    p.set_defaults(run=_report)


def _report(a: argparse.Namespace) -> int:
    from tvm_tinytrain.build import load

    module = None if a.archive is None else load(a.archive)
    if module is None and (a.html is None or not (a.session or a.accuracy)):
        hint = "name an archive, or --html with --session or --accuracy"
        raise ArchiveError("report", "archive", "none", "a model library archive", hint)
    if a.html is None:
        assert module is not None
        if a.session or a.accuracy or a.pictures:
            hint = "add --html FILE: they are drawn there"
            raise ArchiveError(
                "report", "--session, --accuracy, --pictures", "given", "none for a text", hint
            )
        print(json.dumps(module.metadata, indent=1, sort_keys=True) if a.json else module.report())
        return 0
    from tvm_tinytrain.reporting import Report, SessionRecord, load_accuracy

    check_output(a.html)
    session = None if a.session is None else SessionRecord.load(a.session)
    rows = () if a.accuracy is None else load_accuracy(a.accuracy)
    written = Report(module, session, rows).write(a.html, pictures=a.pictures)
    for path in written:
        print(f"wrote {path}", file=sys.stderr if a.json else sys.stdout)
    if a.json:
        shown = {} if module is None else module.metadata
        print(json.dumps({**shown, "files": [str(p) for p in written]}, indent=1, sort_keys=True))
    return 0
