"""The subcommand ``adapt`` of ``tinytrain``: a library on a board learns from labelled samples."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_tinytrain.early_checks import check_options, check_output
from tvm_tinytrain.errors import CheckpointError, ImportModelError, PlanError

if TYPE_CHECKING:
    from tvm_tinytrain.adaptation import AdaptResult, LearnResult
    from tvm_tinytrain.micro import Session
    from tvm_tinytrain.reporting import SessionRecord

_ADAPT = """example:
  tinytrain adapt network.tar --board mps2-an500 --support mine/ --query others/ -o task.tt
Samples: a folder with one folder of images for each class, scaled to the network's input and to [-1, 1]; or an .npz file with
the arrays images (float32, [n, ...] as the network takes them) and labels (integers [n]; for --loss mse or bce the values that
the output should have, [n, ...]). A library whose input is bytes (input_dtype="uint8") gets the pixels as they are, and takes
whole numbers from 0 to 255 of an .npz file.
A library built with --loss prototypical --accumulate learns classes from prototypes, by TinyTrain's procedure. Any other library
takes its labels as they are: a step for each sample, or for each iteration where it accumulates. With --update adaptive either
selects its layers and channels itself.
"""
_RAW = argparse.RawDescriptionHelpFormatter


def add_commands(commands: Any) -> None:
    """Add the subcommand to the parser of ``tinytrain``."""
    _add_adapt(commands)


def board_options(p: argparse.ArgumentParser) -> None:
    """Add what names an archive and a board."""
    p.add_argument("archive", type=Path, help="archive that tinytrain compile or module.export() wrote")
    p.add_argument(
        "--board", default="mps2-an500", help="default: mps2-an500, emulated; see tinytrain boards"
    )
    p.add_argument(
        "--port", help="where a real board is: /dev/ttyACM0, [user@]host, host:1234, or rpc://host:9090[/key]"
    )


def _add_adapt(commands: Any) -> None:
    p = commands.add_parser(
        "adapt", help="adapt a library on a board to your samples", epilog=_ADAPT, formatter_class=_RAW
    )
    board_options(p)
    p.add_argument(
        "--support", required=True, type=Path, metavar="DIR|NPZ", help="labelled samples to learn from"
    )
    p.add_argument("--query", type=Path, metavar="DIR|NPZ", help="other samples: their accuracy is printed")
    p.add_argument("-o", "--output", type=Path, help="checkpoint of what was trained (adaptive libraries)")
    p.add_argument(
        "--record", type=Path, metavar="FILE", help="losses and plan, for tinytrain report --session"
    )
    p.add_argument("--iterations", type=int, default=40, help="passes over the samples (default: 40)")
    p.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    p.add_argument("--seed", type=int, default=0, help="of the augmentation")
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    p.set_defaults(run=_adapt)


def read_samples(
    path: Path, shape: tuple[int, ...], dtype: str = "float32"
) -> tuple[Any, Any, tuple[str, ...]]:
    """Images [n, *shape], labels int64[n] and the classes' names, of a folder of class folders or an .npz file.

    shape, dtype: of one sample. Raises ImportModelError where the file or folder does not hold that, or fewer than two classes.
    """
    import numpy as np

    if path.is_dir():
        from tvm_tinytrain.adaptation.augment import to_bytes
        from tvm_tinytrain.fewshot.datasets import from_folder

        if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
            found = f"input {list(shape)}"
            raise ImportModelError(
                "samples", str(path), found, "[3, size, size]", "pass an .npz file instead"
            )
        data = from_folder(path, shape[1], least=1)
        images = np.concatenate([data.load(k, np.arange(size)) for k, size in enumerate(data.sizes)])
        if dtype == "uint8":
            images = to_bytes(images)
        return images, np.repeat(np.arange(len(data.classes)), data.sizes), data.classes
    found_images, labels = _arrays(path)
    whole = np.issubdtype(np.dtype(dtype), np.integer)
    if labels.shape != found_images.shape[:1] or labels.dtype.kind not in "iu":
        given = ((found_images, "images"), (labels, "labels"))
        found = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for array, name in given)
        allowed = f"images {dtype if whole else ''}[n, {str(shape)[1:-1]}]"
        raise ImportModelError("samples", str(path), found, allowed, "one integer label for each image")
    images = _checked(path, found_images, shape, dtype)
    names = tuple(str(value) for value in np.unique(labels))
    if len(names) < 2:
        found, hint = f"{len(names)} classes", "two are needed: one alone cannot be told from anything"
        raise ImportModelError("samples", str(path), found, "2 or more", hint)
    return images, labels.astype(np.int64), names


def read_targets(
    path: Path, shape: tuple[int, ...], dtype: str, target: tuple[int, ...]
) -> tuple[Any, Any, tuple[str, ...]]:
    """Images [n, *shape], float32 targets [n, *target] of an .npz file, and no names; for losses whose label is no class.

    Raises ImportModelError, ShapeError or PlanError where the file does not hold that.
    """
    from tvm_tinytrain.adaptation.labelled import float_targets

    if path.is_dir():
        found, allowed = "a folder of classes", "an .npz file of images and labels"
        hint = "the library's loss takes the values that the output should have, no classes"
        raise ImportModelError("samples", str(path), found, allowed, hint)
    found_images, labels = _arrays(path)
    images = _checked(path, found_images, shape, dtype)
    return images, float_targets("samples", str(path), labels, len(images), target), ()


def _arrays(path: Path) -> tuple[Any, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except Exception as error:  # NumPy and zipfile raise many kinds for another or a damaged file
        hint = "pass a folder of class folders, or np.savez(path, images=..., labels=...)"
        raise ImportModelError("samples", str(path), error, "arrays images and labels", hint) from error


def _checked(path: Path, images: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Images of an .npz file in the input's dtype; ImportModelError where they do not fit it."""
    import numpy as np

    whole = np.issubdtype(np.dtype(dtype), np.integer)
    if images.shape[1:] != shape or images.ndim == 0 or images.dtype.kind not in ("iu" if whole else "fiub"):
        found = f"images {images.dtype}{list(images.shape)}"
        allowed = f"images {dtype if whole else ''}[n, {str(shape)[1:-1]}]"
        raise ImportModelError("samples", str(path), found, allowed, "images as the network takes them")
    if whole and images.size:
        limits, least, most = np.iinfo(dtype), images.min(), images.max()
        if least < limits.min or most > limits.max:
            hint = "the library's input holds whole numbers"
            allowed = f"{limits.min} to {limits.max}"
            raise ImportModelError("samples", str(path), f"{least} to {most}", allowed, hint)
    if not np.isfinite(images).all():
        hint = "check where they come from"
        raise ImportModelError("samples", str(path), "nan or infinity", "finite numbers", hint)
    return images.astype(dtype)


def _check_labels(path: Path, labels: Any, metadata: Mapping[str, Any]) -> None:
    """PlanError where a network of so many outputs cannot learn these labels; any may be a class of prototypes."""
    if _label(metadata).get("dtype") != "int32":
        return
    classes = next(int(t["shape"][-1]) for t in metadata["tensors"] if t["role"] == "output")
    if labels.min() < 0 or labels.max() >= classes:
        found = f"labels {labels.min()} … {labels.max()}"
        hint = f"the network has {classes} classes: leave some out, or build it with more"
        raise PlanError("adapt", str(path), found, f"0 … {classes - 1}", hint)


def _check_trains(a: argparse.Namespace, metadata: Mapping[str, Any]) -> None:
    """What would only be found out after the training: that there is nothing for a checkpoint."""
    if a.output is None:
        return
    if a.iterations == 0 or a.lr == 0.0:
        option = "--iterations 0" if a.iterations == 0 else "--lr 0"
        hint = "leave out --output, or train"
        raise CheckpointError(
            "adapt", f"--output {a.output}", f"{option}: nothing is trained", "1 or more", hint
        )
    if "adaptive" not in metadata:
        hint = "leave out --output, or compile with --update adaptive"
        raise CheckpointError(
            "adapt", f"--output {a.output}", "a fixed plan", "a task-adaptive library", hint
        )


_Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class _Learnt:
    """What came of the training, and the shares of the queries that were right before and after it."""

    before: float | None
    result: AdaptResult | LearnResult
    after: float | None


@dataclass(frozen=True)
class _Samples:
    """What a library learns from: images, their labels (classes or targets), the queries with theirs, the classes' names."""

    images: Any
    labels: Any
    query: tuple[Any, Any] | None
    names: tuple[str, ...]


def _adapt(a: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tvm_tinytrain.build import load
    from tvm_tinytrain.micro import Session
    from tvm_tinytrain.reporting import SessionRecord

    check_options("adapt", {"--iterations": (a.iterations, 0), "--seed": (a.seed, 0)})
    if not 0.0 <= a.lr < math.inf:
        raise PlanError("adapt", "--lr", a.lr, "a finite number, 0 or more", "0 means no training")
    check_output(a.output, a.record)
    module = load(a.archive)
    _check_trains(a, module.metadata)
    samples = _read(a, module.metadata)
    learn = _learn_prototypes if _label(module.metadata).get("name") == "seed" else _learn_labels
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with console.status(f"building and starting {a.board}"):
        session = Session(module, a.board, port=a.port).open()
    with session, Progress(*bar, console=console, transient=True) as shown:
        task = shown.add_task("adapt", total=a.iterations)

        def progress(done: int, loss: float) -> None:
            shown.update(task, completed=done, description=f"loss {loss:.3f}")

        learnt = learn(a, session, samples, progress)
        record = SessionRecord.of(learnt.result, module)
        if a.output is not None:
            session.save(a.output)
        memory = session.memory()
    if a.record is not None:
        record.save(a.record)
    _tell(a, samples, learnt, record, memory)
    return 0


def _read(a: argparse.Namespace, metadata: Mapping[str, Any]) -> _Samples:
    """The samples that the options name, as the library of ``metadata`` takes them."""
    shape, dtype = _input(metadata)
    target = _label(metadata)
    if target.get("dtype") == "float32" and target.get("name") != "seed":
        if a.query is not None:
            hint = "leave it out: how near the outputs come is for you to say"
            raise PlanError("adapt", "--query", "a loss of values", "a loss of classes", hint)
        images, labels, names = read_targets(a.support, shape, dtype, tuple(target["shape"]))
        return _Samples(images, labels, None, names)
    images, labels, names = read_samples(a.support, shape, dtype)
    _check_labels(a.support, labels, metadata)
    if a.query is None:
        return _Samples(images, labels, None, names)
    *query, classes = read_samples(a.query, shape, dtype)
    if classes != names:
        found, hint = ", ".join(classes), "use the same classes in both"
        raise ImportModelError("adapt", f"classes of {a.query}", found, ", ".join(names), hint)
    return _Samples(images, labels, (query[0], query[1]), names)


def _learn_prototypes(
    a: argparse.Namespace, session: Session, samples: _Samples, progress: _Progress
) -> _Learnt:
    """Adapt by TinyTrain's procedure."""
    images, labels, query = samples.images, samples.labels, samples.query
    before = after = None
    if query is not None:
        plain = session.adapt(images, labels, iterations=0)
        before = _share(plain.classify(session, query[0]), query[1])
    result = session.adapt(
        images, labels, iterations=a.iterations, lr=a.lr, seed=a.seed, queries=None if images.ndim == 4 else _jitter,
        progress=lambda p: progress(p.iteration, p.loss),
    )  # fmt: skip
    if query is not None:
        after = _share(result.classify(session, query[0]), query[1])
    return _Learnt(before, result, after)


def _learn_labels(a: argparse.Namespace, session: Session, samples: _Samples, progress: _Progress) -> _Learnt:
    """Train on the labels as they are."""
    query = samples.query
    before = None if query is None else _share(_argmax(session, query[0]), query[1])
    result = session.learn(
        samples.images, samples.labels, iterations=a.iterations, lr=a.lr, progress=progress
    )
    after = None if query is None else _share(_argmax(session, query[0]), query[1])
    return _Learnt(before, result, after)


def _tell(
    a: argparse.Namespace,
    samples: _Samples,
    learnt: _Learnt,
    record: SessionRecord,
    memory: Mapping[str, int],
) -> None:
    """Print what came of it, as JSON or in words."""
    from tvm_tinytrain.reporting.session_record import finite_or_none

    losses, plan = record.losses, record.plan
    channels = {u.layer: len(u.outputs) for u in plan.layers} if plan else {}
    if a.json:
        summary: dict[str, Any] = {
            "board": a.board, "classes": list(samples.names) or None, "samples": len(samples.images), "iterations": len(losses),
            "loss_first": finite_or_none(losses[0]) if losses else None,
            "loss_last": finite_or_none(losses[-1]) if losses else None,
            "query_accuracy_before": learnt.before, "query_accuracy_after": learnt.after,
            "trained_channels": {str(layer): k for layer, k in channels.items()} if plan else None,
            "plan_digest": plan.digest if plan else None,
            "checkpoint": None if a.output is None else str(a.output), **memory,
        }  # fmt: skip
        print(json.dumps(summary, indent=1))
        return
    if losses:
        print(f"{a.board}: loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} iterations")
    if samples.query is not None:
        print(f"query accuracy {learnt.before:.1%} → {learnt.after:.1%} ({len(samples.query[1])} samples)")
    if plan is not None:
        print("trained channels by layer: " + ", ".join(f"{layer}: {k}" for layer, k in channels.items()))
    high, whole = memory["arena_high_water_bytes"], memory["arena_bytes"]
    print(f"arena {high} of {whole} B, stack {memory['stack_bytes']} B")
    if a.output is not None:
        print(f"wrote {a.output}")


def _jitter(samples: Any, rng: Any) -> Any:
    """Pseudo-queries of what is no image: each value with normal noise of a tenth of the samples' deviation."""
    import numpy as np

    made = samples + rng.normal(size=samples.shape) * (0.1 * float(samples.std()))
    if np.issubdtype(samples.dtype, np.integer):
        limits = np.iinfo(samples.dtype)
        made = np.rint(made).clip(limits.min, limits.max)
    return made.astype(samples.dtype)


def _input(metadata: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """The shape of one sample, without the batch axis, and its dtype."""
    return next((tuple(t["shape"][1:]), str(t["dtype"])) for t in metadata["tensors"] if t["role"] == "input")


def _label(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensor of labels: a class, targets, or the seed of a loss of prototypes; empty where nothing is trained."""
    return next((t for t in metadata["tensors"] if t["role"] == "label"), {})


def _share(found: Any, wanted: Any) -> float:
    return float((found == wanted).mean())


def _argmax(session: Any, images: Any) -> Any:
    import numpy as np

    return np.array([int(np.argmax(session.predict(image[None]))) for image in images])
