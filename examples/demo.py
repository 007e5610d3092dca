"""The demo: an MCUNet that knows clothes learns handwritten digits on an emulated Cortex-M7.

    python examples/demo.py --out build/demo

builds a training library for the board, checks one step of it against PyTorch's autograd, adapts the network from 10 images of
each of 10 digits, one image at a time, and measures 200 others before and after. Writes ``result.json`` and two pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tvm_tinytrain as tt
from examples.arguments import at_least_one
from examples.demo_data import NUM_CLASSES, RECIPE, demo_network, demo_plan, load_support_query
from tvm_tinytrain.early_checks import check_folder
from tvm_tinytrain.memory import plot_plan, text_plan
from tvm_tinytrain.micro import Session

GRADIENT_LR = 1.0
"""Learning rate of the gradient check: with it, old weight − new weight is the gradient."""


def main(words: list[str] | None = None) -> int:
    """Runs the demo with the words of a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder of the results (default: build/demo)"
    )
    parser.add_argument(
        "--board", default="mps2-an500", help="board to run on (default: mps2-an500, emulated)"
    )
    parser.add_argument(
        "--epochs", type=at_least_one, default=RECIPE.epochs, help="passes over the 100 support images"
    )
    parser.add_argument("--queries", type=at_least_one, default=200, help="query images (default: 200)")
    arguments = parser.parse_args(words)
    console = Console()
    try:
        check_folder(arguments.out)
        run(arguments, console)
    except tt.TinyTrainError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Build, check, adapt, measure, write."""
    started = time.monotonic()
    network = demo_network()
    support, support_labels, query, query_labels = load_support_query(0, queries=arguments.queries)
    with console.status("building the training library"):
        module = tt.build(
            network,
            "c -mcpu=cortex-m7",
            example_inputs=(torch.zeros(1, *support.shape[1:]),),
            loss=tt.CrossEntropy(),
            optimizer=tt.SGD(lr=RECIPE.learning_rate, momentum=RECIPE.momentum),
            update=demo_plan(),
            name="demo",
        )
    console.print(
        "[bold]resolved options[/bold]",
        json.dumps(module.metadata["options"]["optimizer"]),
        module.plan.digest,
    )
    console.print(module.report(), highlight=False)
    step_plan = module.arena.problems["step"], module.arena.plans["step"]
    console.print(text_plan(*step_plan, width=console.width - 2), highlight=False, markup=False)
    with console.status(f"compiling and starting {arguments.board}"):
        session = Session(module, board=arguments.board).open()
    with session:
        error = gradient_error(session, network, module, support[:1], int(support_labels[0]))
        console.print(f"one step on the board against PyTorch autograd: max |Δ| / max |g| = {error:.1e}")
        before = accuracy(session, query, query_labels, console, "before")
        losses, instructions = adapt(session, support, support_labels, arguments.epochs, console)
        after = accuracy(session, query, query_labels, console, "after")
        memory = session.memory()
    steps = len(support)
    first, last = float(np.mean(losses[:steps])), float(np.mean(losses[-steps:]))
    static = memory["sram_bytes_linked"] - memory["arena_bytes"] - memory["stack_limit_bytes"]
    result: dict[str, Any] = {
        "network": "mcunet-5fps at 48×48, pre-trained on Fashion-MNIST",
        "board": arguments.board,
        "classes": NUM_CLASSES,
        "support_images": len(support),
        "query_images": len(query),
        "steps": len(losses),
        "accuracy_before": before,
        "accuracy_after": after,
        "loss_first": first,
        "loss_last": last,
        "peak_sram_bytes_planned": memory["sram_bytes_linked"],
        "peak_sram_bytes_measured": memory["arena_high_water_bytes"] + memory["stack_bytes"] + static,
        "arena_bytes": memory["arena_bytes"],
        "stack_bytes_measured": memory["stack_bytes"],
        "flash_bytes": memory["flash_bytes"],
        "instructions_per_step": instructions,
        "macs_per_step": module.metadata["macs"]["step"],
        "max_gradient_error": error,
        "seconds": round(time.monotonic() - started, 1),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    module.write(arguments.out / "library")
    plot_plan(*step_plan, arguments.out / "memory.png")
    plot_losses(losses, steps, arguments.out / "loss.png")
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(
        f"loss {first:.3f} → {last:.3f}, query accuracy {before:.1%} → {after:.1%}, {instructions:,} instructions a step"
    )
    console.print(f"wrote {arguments.out}/result.json, memory.png, loss.png, library/")


def gradient_error(
    session: Session, network: torch.nn.Module, module: Any, image: np.ndarray, label: int
) -> float:
    """One step on the board against autograd: max |Δ| / max |g| over all trained parameters; the board's state is restored."""
    trained = [t["name"] for t in module.metadata["tensors"] if t["role"] == "param"]
    kept = [t["name"] for t in module.metadata["tensors"] if t["role"] in ("param", "state")]
    saved = {name: session.read(name) for name in kept}
    session.write("hyper", np.array([GRADIENT_LR, *saved["hyper"][1:]], dtype=np.float32))
    session.step(image, label)
    gradients = {name: np.subtract(saved[name], session.read(name)) for name in trained}
    for name, value in saved.items():
        session.write(name, value)
    loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(image)), torch.tensor([label]))
    network.zero_grad()
    loss.backward()
    expected = {
        n.replace(".", "_"): p.grad.numpy() for n, p in network.named_parameters() if p.grad is not None
    }
    return max(_relative(gradients[name], expected, module, name) for name in trained)


def _relative(got: np.ndarray, expected: dict[str, np.ndarray], module: Any, name: str) -> float:
    """max |Δ| / max |g| of one trained parameter: a layer's whole weight or bias, or (``<name>_rows``) its trained channels."""
    whole = name.removesuffix("_rows")
    layer = next(la for la in module.layers if whole in (la.weight, la.bias))
    gradient = expected[whole] if whole == name else expected[whole][list(module.plan[layer.id].outputs)]
    return float(np.abs(got - gradient).max() / np.abs(gradient).max())


def accuracy(session: Session, images: np.ndarray, labels: np.ndarray, console: Console, when: str) -> float:
    """Share of images that the board classifies correctly."""
    right = 0
    with _progress(console) as progress:
        task = progress.add_task(f"query accuracy {when}", total=len(images))
        for image, label in zip(images, labels, strict=True):
            right += int(session.predict(image[None]).argmax()) == int(label)
            progress.advance(task)
    return right / len(images)


def adapt(
    session: Session, images: np.ndarray, labels: np.ndarray, epochs: int, console: Console
) -> tuple[list[float], int]:
    """Trains on the support set, one image at a time; returns all losses and the instructions of one step."""
    losses: list[float] = []
    with _progress(console) as progress:
        task = progress.add_task("adapting", total=epochs * len(images))
        for _ in range(epochs):
            for image, label in zip(images, labels, strict=True):
                losses.append(session.step(image[None], int(label)))
                recent = float(np.mean(losses[-len(images) :]))
                progress.update(task, advance=1, description=f"adapting, loss {recent:.3f}")
    return losses, count_instructions(session, images[:1], int(labels[0]))


def count_instructions(session: Session, image: np.ndarray, label: int) -> int:
    """Executed instructions of one step, exact; its effect on the parameters is undone."""
    kept = [t.name for t in session.tensors.values() if t.role in ("param", "state")]
    saved = {name: session.read(name) for name in kept}
    session.write(_named(session, "input"), image)
    session.write(_named(session, "label"), np.array([label], dtype=np.int32))
    counted = int(session.time("step"))
    for name, value in saved.items():
        session.write(name, value)
    return counted


def _named(session: Session, role: str) -> str:
    return next(t.name for t in session.tensors.values() if t.role == role)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def plot_losses(losses: list[float], window: int, path: Path) -> None:
    """The loss of each step and its mean over the last ``window`` steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mean = [float(np.mean(losses[max(0, i - window + 1) : i + 1])) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(losses, color="0.75", linewidth=0.7, label="one image")
    axes.plot(mean, color="tab:blue", label=f"mean of the last {window}")
    axes.set(
        xlabel="step",
        ylabel="cross-entropy",
        title="Adapting to digits on an emulated Cortex-M7",
        ylim=(0, None),
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
