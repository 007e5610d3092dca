"""A firmware that adapts by itself: samples linked beside the library, no host until it is done."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from types import NoneType

import numpy as np
from numpy.typing import NDArray

from tvm_tinytrain.adaptation import DeviceDraws, DiffAugment
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import PlanError, ShapeError, TransportError
from tvm_tinytrain.values import as_whole, in_float32, is_number

DATA_FILE = "tt_standalone_data.c"
_PREFIX = "tt-standalone: "
_LARGEST_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Standalone:
    """The task of a standalone firmware.

    samples: uint8[n, *shape of one input], the support set and then the queries; an input of float32 gets ``scale * value + offset``.
    labels: of the support set, integers 0 to classes - 1, each class at least once. iterations, rate: of the training; rate 0 takes the
    library's own. loss: of a library that was built with ``loss=Prototypical()``. embedding: values of that library's output, else 0.
    augment: makes pseudo-queries of the support samples, anew in each iteration, from the draws of `seed` (`DeviceDraws`); None: they
    are their own. It takes one more float32 sample of RAM, and no cache holds what is augmented (``tt_session.h``).
    fisher_through_prototypes: as `adaptation.adapt` takes it.
    """

    samples: NDArray[np.uint8]
    labels: NDArray[np.integer]
    iterations: int
    scale: float = 1.0
    offset: float = 0.0
    rate: float = 0.0
    loss: Prototypical = field(default_factory=Prototypical)
    embedding: int = 0
    augment: DiffAugment | None = None
    seed: int = 0
    fisher_through_prototypes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", np.asarray(self.samples))
        object.__setattr__(self, "labels", np.asarray(self.labels))
        object.__setattr__(self, "seed", DeviceDraws(self.seed).seed)  # one that no device has is refused
        for name, hint in (
            ("iterations", "0 means no training"),
            ("embedding", "0 where the library's loss is of labels"),
        ):
            whole = as_whole("standalone", name, getattr(self, name), 0, hint, _LARGEST_UINT32)
            object.__setattr__(self, name, whole)
        for name, kinds, allowed in (
            ("loss", (Prototypical,), "Prototypical(...)"),
            ("augment", (DiffAugment, NoneType), "DiffAugment(...), None"),
            ("fisher_through_prototypes", (bool, np.bool_), "True, False"),
        ):
            if not isinstance(getattr(self, name), kinds):
                hint = "leave it out for the default"
                raise PlanError("standalone", name, repr(getattr(self, name)), allowed, hint)
        # A rate that is no more than 0 in float32 would mean the library's own.
        if not (is_number(self.rate) and (self.rate == 0 or in_float32(self.rate) > 0)):
            allowed, hint = "a finite number of float32, 0 or more", "0 takes the library's own"
            raise PlanError("standalone", "rate", repr(self.rate), allowed, hint)
        # With a scale of 0 all inputs would be the same.
        for name, allowed in (("scale", "a finite number of float32, not 0"), ("offset", "a finite number")):
            value = getattr(self, name)
            if not is_number(value) or (name == "scale" and in_float32(value) == 0.0):
                hint = "an input is scale * byte + offset"
                raise PlanError("standalone", name, repr(value), allowed, hint)
        samples, labels = self.samples, self.labels
        sound = samples.dtype == np.uint8 and samples.ndim > 0 and labels.ndim == 1
        sound = sound and np.issubdtype(labels.dtype, np.integer) and 0 < len(labels) <= len(samples)
        if not sound or list(classes := np.unique(labels)) != list(range(len(classes))):
            found = f"samples {samples.dtype}{list(samples.shape)}, labels {labels.dtype}{list(labels.shape)}"
            found += f" of {classes.tolist()}" if sound else ""
            allowed = "uint8 samples, integer labels 0 … classes-1 of the first of them"
            raise ShapeError("standalone", "task", found, allowed, "number the classes from 0")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @property
    def queries(self) -> int:
        """Samples that are classified."""
        return len(self.samples) - len(self.labels)

    @property
    def scratch_bytes(self) -> int:
        """What ``tt_session_scratch_bytes`` answers."""
        classes, width = self.classes, self.embedding
        image = 4 * int(np.prod(self.samples.shape[1:])) if self.augment is not None else 0
        if not width:
            return image
        prototypes = 8 * classes * width + 8 * (classes * width + 2 * width + classes)
        return prototypes + 8 * len(self.labels) * width + image


def standalone_source(library: str, task: Standalone) -> str:
    """The C file that holds a task: its samples, labels and scratch."""
    flat = task.samples.reshape(len(task.samples), -1)
    distance = ("cosine", "euclidean").index(task.loss.distance)
    prototypes = f"{{{distance}, {int(task.loss.through_prototypes)}, {_float(task.loss.scale)}}}"
    numbers = [flat.shape[1], len(task.labels), task.queries, task.classes, task.iterations]
    floats = [_float(v) for v in (task.scale, task.offset, task.rate)]
    scratch, through = max(8, task.scratch_bytes), int(task.fisher_through_prototypes)
    augment = ", ".join(_float(v) for v in astuple(task.augment)) if task.augment is not None else ""
    return (
        f'#include "tt_standalone.h"\n#include "tt_{library}.h"\n\n'
        f"static const uint8_t samples[{flat.size}] = {{\n{_rows(flat.reshape(-1).tolist(), 32)}}};\n"
        f"static const int32_t labels[{len(task.labels)}] = {{\n{_rows(task.labels.tolist(), 32)}}};\n"
        f"static double scratch[{(scratch + 7) // 8}];\n"
        + (f"static const tt_augment_options augment = {{{augment}}};\n\n" if augment else "\n")
        + f"const tt_standalone_task tt_standalone = {{samples, labels, {', '.join(map(str, numbers))}, {', '.join(floats)},\n"
        f"    {prototypes}, scratch, sizeof scratch, {'&augment' if augment else 'NULL'}, {task.seed}u, {through},\n"
        f"    tt_{library}_save_size, tt_{library}_save_to}};\n"
    )


def _rows(values: Sequence[int], width: int) -> str:
    return ",\n".join(",".join(map(str, values[i : i + width])) for i in range(0, len(values), width))


def _float(value: float) -> str:
    return float(np.float32(value)).hex() + "f"


@dataclass(frozen=True)
class StandaloneResult:
    """What a standalone firmware said.

    status: of the session, 0 is good. layers: that were selected; cached: samples whose frozen prefix was computed once. first_loss,
    last_loss: before the first and the last step. entries: names of what ran, in order, without what `calls`, their number, has more:
    the firmware keeps them as loops, and has room for iterations but not for just anything. labels: of the queries, -1 where one
    failed. checkpoint_bytes, checkpoint_crc32: of what was saved, 0 where no layer was selected; the CRC-32 is the one that the
    checkpoint ends with, of all before.
    """

    status: int
    layers: int
    cached: int
    first_loss: float
    last_loss: float
    entries: tuple[str, ...]
    labels: tuple[int, ...]
    checkpoint_bytes: int
    checkpoint_crc32: int
    calls: int


def read_result(console: Iterable[str], entries: Sequence[str]) -> StandaloneResult:
    """Read a result off the lines of a board's console; ``entries`` are the library's, in order.

    Raises TransportError where a part is missing or damaged.
    """
    said: dict[str, list[list[int]]] = {}
    spoken = [text.split(_PREFIX, 1)[1] for text in console if _PREFIX in text]
    if not spoken:
        hint = "see that the firmware was built with standalone=..."
        raise TransportError("standalone", "console", "no result", "a result", hint)
    try:
        for text in spoken:
            what, *numbers = text.split()
            said.setdefault(what, []).append([int(n) for n in numbers])
        _check_whole(said, len(spoken) - 1)
        [[status, layers, cached, *losses]], [[calls]] = said["result"], said["calls"]
        first, last = struct.unpack("<2f", struct.pack("<2I", *losses))
        # nothing is saved where nothing fits the budgets
        [[failed, size, crc]] = said.get("checkpoint", [[-1 if status or layers else 0, 0, 0]])
        names = [name for loop in said.get("entries", ()) for name in _unrolled(loop, entries)]
    except (ValueError, KeyError, IndexError, struct.error) as error:
        hint = "reset the board and read it again"
        found = f"a damaged line ({error})"
        raise TransportError("standalone", "console", found, "lines as in tt_standalone.h", hint) from error
    labels = [label for line in said.get("labels", ()) for label in line]
    return StandaloneResult(
        status or failed, layers, cached, first, last, tuple(names), tuple(labels), size, crc, calls
    )


def _check_whole(said: Mapping[str, list[list[int]]], lines: int) -> None:
    """The last line says how many came before it; a console keeps only its last ones."""
    if "end" not in said:
        hint = "wait until the board answers, or read its last words"
        raise TransportError("standalone", "console", f"{lines + 1} lines and no end", "a whole result", hint)
    [[expected]] = said["end"]
    if lines != expected:
        hint = "the first ones are lost: a console keeps its last lines only; ask for fewer queries"
        found, allowed = f"{lines} of {expected} lines of the result", "all of them"
        raise TransportError("standalone", "console", found, allowed, hint)


def _unrolled(loop: Sequence[int], entries: Sequence[str]) -> list[str]:
    """``[2, 4, 3, 5, 1]``: entry 4 three times and then entry 5, all that twice."""
    repeats, *runs = loop
    once = [entries[i] for i, n in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)]
    return once * repeats
