"""What adaptation asks of a library, in this process or on a board, and the few calls that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation.augment import QuerySource, Samples
from tvm_tinytrain.adaptation.rows import row_places, trained_row_names
from tvm_tinytrain.errors import BudgetError, DTypeError, PlanError, ShapeError, TransportError
from tvm_tinytrain.own_tensors import HYPER, PLAN, REQUEST, SEED
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import FisherMap
from tvm_tinytrain.values import as_whole, is_number

_DELTA = "delta_"


class AdaptableLibrary(Protocol):
    """A library in this process or on a board: `InProcess`, `Session`, or the like.

    tensors: by name, each with `role` ("input", "grad", …), `shape` and `dtype`.
    """

    @property
    def entries(self) -> Sequence[str]:
        """Names of the entries."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Tensors by name."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its build says of it: ``metadata.json``."""

    def predict(self, x: Any) -> npt.NDArray[Any]:
        """Return the output for one sample."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a copy of a tensor."""

    def write(self, name: str, value: Any) -> None:
        """Write a tensor."""

    def call(self, entry: str) -> None:
        """Run an entry; TransportError where it refuses."""

    def read_arena(self, offset: int, count: int) -> bytes:
        """Return bytes of the arena."""


class LibraryCalls:
    """The calls that any training is made of. ``stage`` is what its errors are of."""

    stage = "adapt"

    def __init__(self, library: AdaptableLibrary) -> None:
        if not isinstance(getattr(library, "tensors", None), Mapping):
            hint = "open what tt.build or tt.load returned with InProcess or Session"
            raise PlanError(self.stage, "library", type(library).__name__, "a loaded library", hint)
        self.library = library
        inputs = [name for name, t in library.tensors.items() if t.role == "input"]
        if len(inputs) != 1:
            hint = "train it by write and call with the tensors' names"
            raise PlanError(
                self.stage, "library", f"inputs {', '.join(inputs) or 'none'}", "exactly one", hint
            )
        self._input = inputs[0]
        self._shape = tuple(library.tensors[self._input].shape)
        self._dtype: np.dtype[Any] = np.dtype(library.tensors[self._input].dtype)

    @property
    def is_adaptive(self) -> bool:
        """Whether the library chooses layers and channels at run time."""
        return "install" in self.library.entries

    @property
    def candidates(self) -> dict[int, int]:
        """{candidate layer: output channels} of a task-adaptive library, ascending."""
        deltas = {name: t.shape[0] for name, t in self.library.tensors.items() if t.role == "fisher"}
        return dict(sorted((int(name.removeprefix(_DELTA)), count) for name, count in deltas.items()))

    def check_options(
        self, iterations: object, lr: object, queries: object, seed: object, progress: object
    ) -> None:
        """PlanError for a number of iterations, a rate, a source of pseudo-queries, a seed or a callback that none can be."""
        as_whole(self.stage, "iterations", iterations, 0, "0 means no training")
        as_whole(self.stage, "seed", seed, 0, "the same seed gives the same draws")
        if not (is_number(lr) and lr >= 0.0):
            raise PlanError(self.stage, "lr", repr(lr), "a finite number, 0 or more", "0 means no training")
        if queries is not None and (isinstance(queries, type) or not callable(queries)):
            allowed, hint = "a function of samples and a generator", "e.g. DiffAugment()"
            raise PlanError(self.stage, "queries", repr(queries), allowed, hint)
        if progress is not None and not callable(progress):
            hint = "it is called after each iteration"
            raise PlanError(self.stage, "progress", repr(progress), "a function", hint)

    def check_plan(self, plan: UpdatePlan | None) -> None:
        """PlanError where a plan is given to a library that cannot choose."""
        if plan is not None and not self.is_adaptive:
            hint = "build it with update=plan, or with update=TaskAdaptive(...)"
            raise PlanError(self.stage, "plan", "one for a library of a fixed plan", "none", hint)

    def samples(self, images: npt.ArrayLike) -> Samples:
        """Samples [n, *shape of one sample] in the input's dtype; ShapeError or DTypeError where they do not fit the input."""
        array = self._numbers("samples", images, f"[n, {str(self._shape[1:])[1:-1]}]")
        if array.ndim == 0 or array.shape[1:] not in (self._shape, self._shape[1:]):
            hint = "resize the samples to the network's input"
            raise ShapeError(self.stage, "samples", array.shape, f"[n, {str(self._shape[1:])[1:-1]}]", hint)
        self._check_finite("samples", array)
        return array.reshape(len(array), *self._shape[1:])

    def labelled(
        self, images: npt.ArrayLike, labels: npt.ArrayLike
    ) -> tuple[Samples, npt.NDArray[np.integer]]:
        """Samples, and one integer label for each; ShapeError where there are none, or they do not fit each other or the input."""
        samples, given = self.samples(images), self._array("labels", labels, "integers")
        if given.shape != (len(samples),) or not len(samples) or not np.issubdtype(given.dtype, np.integer):
            found = f"{len(samples)} samples, labels {given.dtype}{list(given.shape)}"
            raise ShapeError(self.stage, "samples", found, "one integer label for each sample", "check both")
        if given.max() > np.iinfo(np.int64).max:
            raise PlanError(self.stage, "labels", given.max(), "integers of 64 bits", "number the classes")
        return samples, given

    def drawn(self, source: QuerySource, samples: Samples, rng: np.random.Generator) -> Samples:
        """What a source makes of samples; ShapeError where it is not one pseudo-query for each, and what `samples` raises."""
        made = self._numbers("pseudo-queries", source(samples, rng), samples.shape)
        if made.shape != samples.shape:
            hint = "return one pseudo-query for each sample given"
            raise ShapeError(self.stage, "pseudo-queries", made.shape, samples.shape, hint)
        self._check_finite("pseudo-queries", made)
        return made

    def _numbers(self, thing: str, values: npt.ArrayLike, allowed: object) -> Samples:
        """`values` in the input's dtype; ShapeError for what is no array of real numbers, DTypeError for what it does not hold."""
        array = self._array(thing, values, allowed)
        if np.issubdtype(self._dtype, np.integer):
            return self._whole(thing, array)
        if not np.can_cast(array.dtype, self._dtype, "same_kind"):
            hint = "give one array of numbers"
            raise ShapeError(self.stage, thing, array.dtype, f"real numbers {allowed}", hint)
        with np.errstate(over="ignore"):  # what overflows is not finite, which is refused
            return array.astype(self._dtype, copy=False)

    def _whole(self, thing: str, array: npt.NDArray[Any]) -> Samples:
        limits, found = np.iinfo(self._dtype.name), str(array.dtype)
        if np.issubdtype(array.dtype, np.integer):
            if not array.size or limits.min <= array.min() <= array.max() <= limits.max:
                return array.astype(self._dtype, copy=False)
            found = f"{array.min()} to {array.max()}"
        hint = "the library was built for whole numbers"
        if self._dtype == np.uint8:
            hint = "give the images' bytes: the library makes floats of them itself"
        raise DTypeError(self.stage, thing, found, f"{self._dtype}, {limits.min} to {limits.max}", hint)

    def _array(self, thing: str, values: npt.ArrayLike, allowed: object) -> npt.NDArray[Any]:
        try:
            return np.asarray(values)
        except (TypeError, ValueError, RuntimeError) as error:  # of different shapes, or a graph's tensor
            raise ShapeError(self.stage, thing, error, allowed, "give one array of numbers") from error

    def _check_finite(self, thing: str, values: Samples) -> None:
        if not np.isfinite(values).all():
            hint = "check where they come from"
            raise PlanError(self.stage, thing, "nan or infinity", "finite numbers", hint)

    def potentials(self) -> FisherMap:
        """The Fisher potentials of all candidate channels that were measured."""
        return FisherMap({i: self.library.read(f"{_DELTA}{i}") for i in self.candidates})

    def set_learning_rate(self, rate: float) -> None:
        """Write the learning rate that `apply` uses from now on."""
        hyper = self.library.read(HYPER)
        hyper[0] = rate
        self.library.write(HYPER, hyper)

    def is_finite(self) -> bool:
        """Whether all that is trained are finite numbers.

        The device's clamps take the number of a number and a NaN: with spoilt weights losses may be finite all the same.
        """
        trained = [self.library.read(n) for n, t in self.library.tensors.items() if t.role == "param"]
        if self.is_adaptive:
            adaptive = self.library.metadata["adaptive"]
            places = row_places(self.library.read(PLAN), adaptive)
            for offset, channels, row_bytes in (places[n] for n in trained_row_names(adaptive)):
                if channels:
                    rows = self.library.read_arena(offset, channels * row_bytes)
                    trained.append(np.frombuffer(rows, "<f4"))
        return all(bool(np.isfinite(values).all()) for values in trained)

    @contextmanager
    def learning_rate(self, rate: float) -> Iterator[None]:
        """A rate for one training; afterwards the library has its own again, whatever ended the training.

        Only what a board no longer answers stays as it is.
        """
        own = float(self.library.read(HYPER)[0])
        self.set_learning_rate(rate)
        try:
            yield
        except TransportError:
            raise
        except BaseException:
            self.set_learning_rate(own)
            raise
        self.set_learning_rate(own)

    def restart_optimizer(self) -> None:
        """Set Adam's bias corrections 1 − β^t to 0, as before its first step; the rows' moments are cleared by `install`."""
        hyper = self.library.read(HYPER)
        hyper[1:3] = 0.0
        self.library.write(HYPER, hyper)

    def drop_gradients(self) -> None:
        """Forget what was accumulated and not applied; weights stay as they are.

        Where gradients are tensors they are zeroed. A task-adaptive library keeps them in its rows: there an
        `apply` of rate 0 clears them, which still decays the optimizer's moments once.
        """
        gradients = [name for name, t in self.library.tensors.items() if t.role == "grad"]
        for name in gradients:
            self.library.write(name, np.zeros_like(self.library.read(name)))
        if not gradients:
            hyper = self.library.read(HYPER)
            self.set_learning_rate(0.0)
            self.library.call("apply")
            self.set_learning_rate(float(hyper[0]))

    def begin(self, plan: UpdatePlan | None) -> UpdatePlan | None:
        """Go back to the network's own weights and a fresh optimizer; install ``plan`` if there is one, and return it."""
        self.library.call("release")
        self.restart_optimizer()
        return None if plan is None else self.install(plan)

    def select(self) -> UpdatePlan:
        """Let the library select and install; BudgetError where no channel fits its budgets: nothing is installed then."""
        self.library.call("select")
        if not self.library.read(REQUEST).any():
            hint = "give the library more memory or compute"
            raise BudgetError(self.stage, "selection", "no channel fits", "at least one", hint)
        return self.installed()

    def install(self, plan: UpdatePlan) -> UpdatePlan:
        """Install a plan of whole channels, whose biases are trained too where there are any.

        PlanError where it trains nothing, what is no candidate, some inputs of a channel only, or a bias without its weights.
        """
        if not isinstance(plan, UpdatePlan) or not plan.layers:
            found = "no layers" if isinstance(plan, UpdatePlan) else type(plan).__name__
            raise PlanError(
                self.stage, "plan", found, f"an UpdatePlan of channels of {self.candidates}", "choose some"
            )
        bits = np.zeros(sum(self.candidates.values()), np.uint8)
        starts, position = {}, 0
        for layer, channels in self.candidates.items():
            starts[layer] = position
            position += channels
        for update in plan.layers:
            if update.layer not in starts or update.outputs[-1] >= self.candidates[update.layer]:
                found = f"layer {update.layer}, channel {update.outputs[-1]}"
                raise PlanError(
                    self.stage, "plan", found, f"channels of {self.candidates}", "choose candidates"
                )
            if update.inputs is not None or not update.weight:
                found = f"layer {update.layer}, " + (
                    "its bias alone" if update.inputs is None else "some inputs"
                )
                hint = "leave `inputs` and `weight` out, or build the library with update=plan"
                raise PlanError(self.stage, "plan", found, "weights of whole channels", hint)
            bits[starts[update.layer] + np.array(update.outputs)] = 1
        self.library.write(REQUEST, np.packbits(bits, bitorder="little"))
        self.library.call("install")
        return self.installed()

    def installed(self) -> UpdatePlan:
        """The plan that stands in the tensor `request`."""
        bits = np.unpackbits(self.library.read(REQUEST), bitorder="little")
        described = self.library.metadata["adaptive"]["candidates"]
        biased = {c["layer"] for c in described if c.get("bias", True)}  # older archives do not say
        updates, position = [], 0
        for layer, channels in self.candidates.items():
            chosen = np.flatnonzero(bits[position : position + channels])
            position += channels
            if chosen.size:
                updates.append(LayerUpdate(layer, tuple(int(c) for c in chosen), bias=layer in biased))
        return UpdatePlan(tuple(updates))


class Caller(LibraryCalls):
    """The calls of an adaptation by prototypes, in terms of samples and seeds.

    Raises PlanError where the library lacks what adaptation needs.
    """

    def __init__(self, library: AdaptableLibrary) -> None:
        super().__init__(library)
        missing = [e for e in ("predict", "accumulate", "apply") if e not in library.entries]
        missing += [t for t in (SEED, HYPER) if t not in library.tensors]
        if missing:
            hint = "build it with loss=Prototypical(), accumulate=True"
            raise PlanError(
                self.stage, "library", f"no {', '.join(missing)}", "entries and tensors of these", hint
            )
        self._seed_shape = tuple(library.tensors[SEED].shape)

    def embed(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Embeddings float32[n, width] of samples, one `predict` each."""
        found = [self.library.predict(sample.reshape(self._shape)).reshape(-1) for sample in samples]
        return np.stack(found).astype(np.float32) if found else np.zeros((0, self._seed_shape[1]), np.float32)

    def backward(
        self, samples: Iterable[Samples], seeds: npt.NDArray[Any], entry: str = "accumulate"
    ) -> None:
        """Run the backward pass of each sample from ∂loss/∂embedding."""
        for sample, seed in zip(samples, seeds, strict=True):
            self.library.write(self._input, sample.reshape(self._shape))
            self.library.write(SEED, seed.astype(np.float32).reshape(self._seed_shape))
            self.library.call(entry)

    def fisher(self, samples: Samples, seeds: npt.NDArray[Any]) -> FisherMap:
        """Measure the Fisher potentials of all candidate channels; the library must have nothing installed."""
        self.library.call("fisher_begin")
        self.backward(samples, seeds, "fisher")
        return self.potentials()
