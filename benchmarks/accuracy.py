"""Few-shot accuracy of every method on real domains, by our compiled code in this process.

For each network × sampler × domain × method: mean accuracy over tasks, its 95 % interval, the gain over no
adaptation on the same tasks, and the exact memory and multiply-accumulates of training. Tasks are the same for all
methods. The rate is chosen from {0, 1e-4, 1e-3, 1e-2} on held-out support samples, once by domain and once by task:
rows say which. Means are asked of rates by domain, "no worse than none" of both. Domains are the folders of --data,
networks the int8 backbones of --models (ImageNet weights, no meta-training).

    python -m benchmarks.accuracy --data DIR --models DIR --episodes 20 --json build/accuracy.json

With --state FILE a broken run goes on where it ended. Without --full an iteration takes 12 pseudo-queries, a rate is
tried for 8 iterations, and the various-way sampler is bounded to 10 ways and 20 support samples. --full: 200 tasks,
all networks and methods, up to 500 support samples, all pseudo-queries; many hours.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.accuracy_agreement import STEPS, measure_agreement, methods_to_compare
from benchmarks.common import Report, parse, parser, print_table
from tvm_tinytrain.fewshot.datasets import Dataset, from_folder
from tvm_tinytrain.fewshot.episodes import FixedWays, Sampler, VariousWays
from tvm_tinytrain.fewshot.evaluate import Contest, evaluate
from tvm_tinytrain.fewshot.methods import ADAPTIVE, METHODS, LibraryFiles, Method, build_methods
from tvm_tinytrain.fewshot.results import Row, cells
from tvm_tinytrain.fewshot.tasks import PAPER_RATES, RATE_BY, AdaptOptions
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.models import load_int8_backbone

SIZE = 128
DOMAINS = {  # folder: (name with the size of the subset, separator of groups in file names)
    "traffic_signs": ("Traffic-Signs-43", "_"),
    "omniglot": ("Omniglot-136", None),
    "quickdraw": ("QuickDraw-6", None),
    "textures": ("Textures-10", None),
    "sign_digits": ("Sign-Digits-10", None),
}
FAST = (
    "-O3", "-march=native", "-ffp-contract=fast", "-fno-tree-loop-vectorize", "-fno-math-errno", "-fno-trapping-math",
    "-ffinite-math-only", "-fno-signed-zeros",
)  # fmt: skip
"""Two and a half times as fast as the flags of the target, because clamps become vector instructions; no sum is reordered, but
results may differ from a board's in the last bits."""


@dataclass(frozen=True)
class Network:
    """Files of a backbone, and the static scheme that SparseUpdate uses for it."""

    stem: str
    scheme: str


NETWORKS = {
    "mcunet": Network("mcunet-5fps", "mcunet-99kb"),
    "mbv2": Network("mbv2-w0.35", "mbv2-99kb"),
    "proxyless": Network("proxyless-w0.3", "proxyless-98kb"),
}
QUICK_METHODS = ("none", "lastlayer", "sparseupdate", "tinytrain", "exact")
SHORT = 20
"""Runs of fewer tasks leave FullTrain out (it costs as much as the other four) unless it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 if all checks hold."""
    options = parse(_parser(), argv)
    report = Report(options)
    datasets = _datasets(options)
    rows: list[Row] = []
    if not datasets or not (options.models / "mcunet-5fps.json").is_file():
        report.check("data and models are there", "folders of images and backbones", "missing", False)
        return report.finish()
    torch.set_num_threads(1)
    for name in options.networks:
        with report.attempt(f"{name} runs"):
            rows += _run(name, datasets, options, report)
            report.save()
    heads, body = cells(rows)
    print_table("Accuracy", heads, body)
    for name in options.networks:
        own = [r for r in rows if r.network == name]
        for sampler, by in dict.fromkeys((r.sampler, r.rate_by) for r in own):
            _check(report, name, [r for r in own if r.sampler == sampler and r.rate_by == by])
    return report.finish()


def _parser() -> argparse.ArgumentParser:
    p = parser("accuracy", __doc__)
    p.add_argument("--data", type=Path, required=True, help="folder with one folder for each domain")
    p.add_argument("--models", type=Path, required=True, help="folder with the int8 backbones")
    p.add_argument("--episodes", type=int, help="tasks for each domain and sampler (20; 200 with --full)")
    p.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=None, metavar="NAME")
    p.add_argument("--domains", nargs="+", choices=tuple(DOMAINS), default=tuple(DOMAINS), metavar="NAME")
    p.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    p.add_argument("--samplers", nargs="+", choices=("fixed", "various"), default=("fixed", "various"))
    p.add_argument(
        "--rates", nargs="+", type=float, default=PAPER_RATES, help="learning rates to choose from"
    )
    p.add_argument("--iterations", type=int, default=40)
    p.add_argument("--tuning-iterations", type=int, help="iterations at each rate (8; 40 with --full)")
    p.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    p.add_argument(
        "--candidates", choices=("expansions", "all"), default="expansions", help="of task-adaptive methods"
    )
    p.add_argument("--state", type=Path, help="results of single tasks are kept here; a broken run goes on")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--full", action="store_true", help="200 tasks, all networks and methods, the full sampler"
    )
    return p


def _datasets(options: argparse.Namespace) -> list[Dataset]:
    options.episodes = options.episodes or (200 if options.full else 20)
    options.networks = options.networks or list(NETWORKS)
    quick = QUICK_METHODS if options.episodes < SHORT else (*QUICK_METHODS, "fulltrain")
    options.methods = options.methods or list(METHODS if options.full else quick)
    options.tuning_iterations = options.tuning_iterations or (40 if options.full else 8)
    found = [d for d in options.domains if (options.data / d).is_dir()]
    return [
        from_folder(options.data / d, SIZE, group_separator=DOMAINS[d][1], name=DOMAINS[d][0]) for d in found
    ]


def _run(name: str, datasets: list[Dataset], options: argparse.Namespace, report: Report) -> list[Row]:
    network = NETWORKS[name]
    files = (options.models / f"{network.stem}.json", options.models / f"{network.stem}.npz")
    start = time.perf_counter()
    methods = build_methods(
        load_int8_backbone(*files),
        (torch.zeros(1, 3, SIZE, SIZE),),
        options.methods,
        scheme=network.scheme,
        task_adaptive=replace(ADAPTIVE, layer_kind=options.candidates),
    )
    print(f"{name}: libraries built in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    adapt = AdaptOptions(
        iterations=options.iterations,
        rates=tuple(options.rates),
        tuning_iterations=options.tuning_iterations,
        queries_per_iteration=None if options.full else 12,
        rate_by=RATE_BY,
    )
    samplers: dict[str, Sampler] = {
        "fixed": FixedWays(),
        "various": VariousWays() if options.full else VariousWays(max_ways=10, max_support=20, max_queries=5),
    }
    contest = Contest(
        name, methods, tuple(datasets), tuple(samplers[s] for s in options.samplers), options.episodes, adapt,
        options.seed,
    )  # fmt: skip
    state = None if options.state is None else options.state.with_name(f"{options.state.name}.{name}.json")
    load = partial(InProcess, cflags=FAST, build_dir=Path("build") / "accuracy")
    for library in {m.library.name: m.library for m in methods}.values():
        load(library).close()  # compiled once, here; the workers find it

    def progress(done: int, jobs: int) -> None:
        seconds = time.perf_counter() - start
        print(f"{name}: task {done} of {jobs}, {seconds:.0f} s", file=sys.stderr, flush=True)

    with report.attempt(f"{name}: agreement with PyTorch"):
        _check_agreement(
            report, name, methods, partial(load_int8_backbone, *files), datasets, load, options.processes
        )
    results = evaluate(contest, load, path=state, processes=options.processes, progress=progress)
    rows = results.rows()
    report.rows += [asdict(row) for row in rows]
    return rows


def _check_agreement(
    report: Report,
    network: str,
    methods: Sequence[Method],
    make: Callable[[], torch.nn.Module],
    datasets: Sequence[Dataset],
    load: Callable[[LibraryFiles], InProcess],
    processes: int,
) -> None:
    """Every method that trains layers of the network, on the first task of up to two domains."""
    jobs = list(product(methods_to_compare(methods), datasets[:2]))
    context = get_context("spawn")  # a fork would copy the threads' locks of TVM and torch
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(measure_agreement, method, dataset, make, load) for method, dataset in jobs]
        found = []
        for future, (method, dataset) in zip(waiting, jobs, strict=True):
            found.append(future.result())
            print(f"{network}: {method.name} against PyTorch, {dataset.name}", file=sys.stderr, flush=True)
    if not found:
        return
    percent = [[100 * a.predictions, 100 * a.torch_predictions] for a in found]
    rows = [[a.method, a.domain, a.queries, *p, a.weights] for a, p in zip(found, percent, strict=True)]
    heads = ["method", "domain", "queries", "predictions alike %", "PyTorch float32's %", "weights"]
    print_table(f"{network}: {STEPS} steps of Adam against PyTorch in float64", heads, rows)
    report.rows += [{"section": "agreement", "network": network, **asdict(a)} for a in found]
    report.at_least(f"{network}: predictions as PyTorch's", 99.5, fmean(p[0] for p in percent), "%")
    worst = max(a.weights for a in found)
    report.at_most(f"{network}: weights after {STEPS} steps against PyTorch's", 1e-3, worst, "relative")


def _check(report: Report, network: str, rows: list[Row]) -> None:
    """What is asked, over the domains of one sampler and one way of choosing rates."""
    by = rows[0].rate_by
    by_method = {m: [r for r in rows if r.method == m] for m in dict.fromkeys(r.method for r in rows)}
    mean = {m: 100 * fmean(r.accuracy for r in found) for m, found in by_method.items()}
    # Independent domains: the mean's interval is the root of the summed squares by their number.
    slack = {
        m: 100 * sum((r.interval or 0.0) ** 2 for r in found) ** 0.5 / len(found)
        for m, found in by_method.items()
    }
    title = f"{network}, {rows[0].sampler}, rate by {by}"
    for other in ("lastlayer", "sparseupdate"):
        if by == "domain" and {"tinytrain", other} <= set(mean):
            limit = mean[other] - slack[other]
            report.at_least(f"{title}: tinytrain against {other}, mean", limit, mean["tinytrain"], "%")
    if by == "domain" and {"tinytrain", "exact"} <= set(mean):
        report.at_least(
            f"{title}: exact against tinytrain, mean", mean["tinytrain"] - 0.3, mean["exact"], "%"
        )
    for row in rows:
        if row.gain is not None and row.method != "none":
            limit = -100 * (row.gain_interval or 0.0)
            report.at_least(f"{title}, {row.domain}: {row.method} over none", limit, 100 * row.gain, "points")


if __name__ == "__main__":
    sys.exit(main())
