"""What a user chooses, as frozen values: loss, optimizer, update scheme, budget, and the options of a build."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Rational
from typing import get_args

from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.values import as_whole, check_number, in_float32, is_number, parse_bytes

CACHE_FORMATS = ("float32", "float16", "int8")
"""How a task-adaptive library may keep the frozen prefix's results; the position is the device's number (``tt_rows.h``)."""


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy of logits[1, 2 or more classes] against an int32 label, as ``torch.nn.CrossEntropyLoss``."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number("label_smoothing", self.label_smoothing, below=1.0)


@dataclass(frozen=True)
class MSE:
    """Mean squared error against a float32 target of the output's shape."""


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Mean binary cross-entropy of logits against float32 targets of the output's shape."""


@dataclass(frozen=True)
class Prototypical:
    """Cross-entropy over distances to class prototypes (ProtoNet, Snell et al. 2017), the loss of TinyTrain's online stage.

    The network's output is an embedding. ``distance`` is "cosine" (logit = scale · cosine similarity) or "euclidean" (logit = −scale ·
    squared distance). ``through_prototypes`` lets the gradient flow through the prototypes too, as P>M>F does. The loss couples the
    samples, so it is computed in two passes: all embeddings first, then one backward pass per sample from the exact gradient of the
    loss with respect to its embedding, which the library takes as the tensor ``seed``.
    """

    distance: str = "cosine"
    scale: float = 10.0
    through_prototypes: bool = True

    def __post_init__(self) -> None:
        if self.distance not in ("cosine", "euclidean"):
            raise PlanError(
                "config", "distance", repr(self.distance), "cosine, euclidean", "choose one of these"
            )
        if not (is_number(self.scale) and in_float32(self.scale) > 0.0):
            raise PlanError("config", "scale", repr(self.scale), "a positive float32", "P>M>F starts at 10")


Loss = CrossEntropy | MSE | BinaryCrossEntropy | Prototypical


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD with learning rate ``lr``."""

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_number(f"SGD {name}", getattr(self, name))
        if self.nesterov and not self.momentum:
            raise PlanError(
                "config", "SGD nesterov", "momentum 0", "a momentum", "e.g. SGD(0.01, momentum=0.9)"
            )


def _check_adam(options: Adam | AdamW) -> None:
    kind = type(options).__name__
    for name in ("lr", "eps", "weight_decay"):
        check_number(f"{kind} {name}", getattr(options, name))
    if not isinstance(options.betas, (tuple, list)) or len(options.betas) != 2:
        hint = "of the first and the second moment, e.g. (0.9, 0.999)"
        raise PlanError("config", f"{kind} betas", repr(options.betas), "two numbers", hint)
    for beta in options.betas:
        check_number(f"{kind} betas", beta, below=1.0)
    state = options.state
    if state not in ("float32", "bfloat16", "int8"):
        hint = "bfloat16 takes half the bytes, int8 about a quarter"
        raise PlanError("config", "optimizer state", repr(state), "float32, bfloat16, int8", hint)


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam.

    ``state`` is what the two moments are kept in between steps: "float32", 8 bytes per weight; "bfloat16", 4 bytes; "int8", 2 bytes and
    8 per output channel, which scale its codes (`passes.kernels.block_update`; vectors stay in float32). bfloat16 rounds the first
    moment to nearest. The second one grows by less than half a unit in its last place as soon as some hundred steps are taken,
    so it is rounded at random, with the lowest bits of the gradient as the random number.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    state: str = "float32"

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True)
class AdamW:
    """torch.optim.AdamW (decoupled weight decay); ``state`` as for `Adam`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    state: str = "float32"

    def __post_init__(self) -> None:
        _check_adam(self)


Optimizer = SGD | Adam | AdamW


@dataclass(frozen=True)
class FullTrain:
    """All weights and biases of all layers; of a weight that several operators share, the biases of all of them.

    A parameter of no layer, such as a layer norm's scale, stays as it is: the library's report names it, ``also_train`` trains it.
    """


@dataclass(frozen=True)
class LastLayer:
    """Weight and bias of the last layer."""


@dataclass(frozen=True)
class BiasOnly:
    """The biases of the last ``last`` layers (default: of all), no weight."""

    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None:
            last = as_whole("config", "BiasOnly last", self.last, 1, "None takes all layers")
            object.__setattr__(self, "last", last)


@dataclass(frozen=True)
class SparseUpdate:
    """One of MIT's static schemes for the three backbones, by name, e.g. "mcunet-99kb" (see selection.SCHEMES).

    The scheme's share of input channels of largest norm is trained. ``biases`` also trains the biases of the last convolutions, as
    MIT does.
    """

    scheme: str
    biases: bool = True


@dataclass(frozen=True)
class TinyTL:
    """Lite residual modules beside all blocks, and nothing else, is trained (Cai et al., "TinyTL", NeurIPS 2020).

    Each block's branch is average pooling by ``pool``, a ``kernel``² convolution in ``groups``, ReLU, a 1×1 convolution, and nearest
    upsampling. Initial weights are drawn from ``seed``, those of the last convolution times
    ``gain``: with 0 the network starts as it is.
    ``last_layer`` trains the network's last layer too, for a classifier's head.
    """

    kernel: int = 5
    groups: int = 2
    pool: int = 2
    gain: float = 0.0
    seed: int = 0
    last_layer: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel", "groups", "pool"):
            found = as_whole("config", f"TinyTL {name}", getattr(self, name), 1, "the paper uses 5, 2, 2")
            object.__setattr__(self, name, found)
        hint = "the same seed draws the same weights"
        object.__setattr__(self, "seed", as_whole("config", "TinyTL seed", self.seed, 0, hint))
        if not is_number(self.gain):
            raise PlanError("config", "TinyTL gain", repr(self.gain), "a finite number", "0 changes nothing")


@dataclass(frozen=True)
class AdapterDrop:
    """`TinyTL` without the branches of the first ``drop`` share of the blocks (Rücklé et al., EMNLP 2021): 0.25, 0.5, 0.75 in the
    paper's tables."""

    drop: float
    modules: TinyTL = field(default_factory=TinyTL)

    def __post_init__(self) -> None:
        if not (is_number(self.drop) and 0.0 <= self.drop < 1.0):
            raise PlanError(
                "config", "AdapterDrop", repr(self.drop), "a share of at least 0, below 1", "0 is TinyTL"
            )
        if not isinstance(self.modules, TinyTL):
            found = type(self.modules).__name__
            raise PlanError(
                "config", "AdapterDrop modules", found, "a TinyTL", "leave it out for the paper's"
            )


def lite_modules(update: object) -> tuple[TinyTL, float] | None:
    """The branches that an update trains and the share of blocks that goes without, None for one that adds no branches."""
    if isinstance(update, AdapterDrop):
        return update.modules, update.drop
    return (update, 0.0) if isinstance(update, TinyTL) else None


Update = FullTrain | LastLayer | BiasOnly | SparseUpdate | TinyTL | AdapterDrop | UpdatePlan


@dataclass(frozen=True)
class Budget:
    """What a training session may use.

    ``memory`` is bytes of SRAM ("256KB" or a number) for the arena; ``compute`` the multiply-accumulates of one backward pass as
    a fraction of those of ``FullTrain``'s, as in the paper (§3), for an update that is chosen on the device. None means no limit.
    """

    memory: int | str | None = None
    compute: float | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def arena_bytes(self) -> int | None:
        """Bytes of the largest arena within the memory budget: arenas are multiples of 8."""
        return None if self.memory is None else parse_bytes(self.memory) // 8 * 8

    def macs_of(self, full_macs: int) -> int | None:
        """The compute budget as multiply-accumulates of ``full_macs``, rounded down.

        The fraction is read as the decimal that was written: 0.15 is 15/100.
        """
        if self.compute is None:
            return None
        exact = isinstance(self.compute, Rational)
        return int(Fraction(self.compute if exact else repr(float(self.compute))) * full_macs)

    def __post_init__(self) -> None:
        if self.memory is not None and parse_bytes(self.memory) <= 0:
            hint = "give the SRAM that may be used"
            raise BudgetError("config", "memory budget", str(self.memory), "more than 0 bytes", hint)
        if self.memory is not None and not isinstance(self.memory, str):
            object.__setattr__(self, "memory", parse_bytes(self.memory))
        if self.compute is not None and not (is_number(self.compute) and 0.0 < self.compute <= 1.0):
            raise BudgetError(
                "config", "compute budget", str(self.compute), "a fraction in (0, 1]", "the paper uses 0.15"
            )


@dataclass(frozen=True)
class MemoryOptions:
    """What the compiler does so that less has to be kept; none of it changes results beyond rounding.

    ``masks``: one bit per element of a clamp's output where only its gradient needs it. ``reuse``: elementwise kernels and depthwise
    convolutions overwrite an operand that dies. ``order``: gradients of parameters run as early as what they change allows.
    ``stream``: inverted bottlenecks and the stem run row by row where that lowers the peak.
    ``recompute``: inner tensors of blocks are computed again on the way back: "auto" only as far as a memory budget asks for it, at
    the least extra multiply-accumulates that were found; "lowest" as far as it lowers the peak; "never".
    ``input_dtype``: "uint8" takes bytes, from which the first kernel makes x · ``input_scale`` + ``input_offset``; default: [-1, 1].
    It holds for all inputs of a network that has several.
    """

    masks: bool = True
    reuse: bool = True
    order: bool = True
    stream: bool = True
    recompute: str = "auto"
    input_dtype: str = "float32"
    input_scale: float = 1.0 / 127.5
    input_offset: float = -1.0

    def __post_init__(self) -> None:
        if self.input_dtype not in ("float32", "uint8"):
            raise PlanError("config", "input dtype", repr(self.input_dtype), "float32, uint8", "choose one")
        if self.recompute not in ("auto", "lowest", "never"):
            raise PlanError("config", "recompute", repr(self.recompute), "auto, lowest, never", "choose one")
        scales = "a finite number of float32, not 0"
        for name, allowed in (("input_scale", scales), ("input_offset", "a finite number")):
            value = getattr(self, name)
            if not is_number(value) or (name == "input_scale" and in_float32(value) == 0.0):
                raise PlanError("config", name, repr(value), allowed, "x = byte · scale + offset")

    @staticmethod
    def plain() -> MemoryOptions:
        """Nothing of it: what to compare with."""
        return MemoryOptions(masks=False, reuse=False, order=False, stream=False, recompute="never")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what is built, besides the model and the target.

    ``accumulate`` splits the step in two entries: ``accumulate`` adds one sample's gradients, ``apply`` updates the weights. Without it
    ``step`` applies every gradient where it is made, and none is kept.
    ``also_train`` names parameters that belong to no layer, such as a layer norm's scale, to be trained with the plan's layers.
    """

    loss: Loss = field(default_factory=CrossEntropy)
    optimizer: Optimizer = field(default_factory=SGD)
    update: object = field(default_factory=FullTrain)
    budget: Budget = field(default_factory=Budget)
    accumulate: bool = False
    name: str = "model"
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    also_train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, kinds in (
            ("loss", Loss),
            ("optimizer", Optimizer),
            ("budget", Budget),
            ("memory", MemoryOptions),
        ):
            value = getattr(self, name)
            if not isinstance(value, kinds):
                members = [kind.__name__ for kind in get_args(kinds) or (kinds,)]
                made = type(value)
                found = (
                    repr(value) if isinstance(value, (type, str)) else f"{made.__module__}.{made.__name__}"
                )
                hint = f"write e.g. {name}=tt.{members[0]}()"
                raise PlanError("config", name, found, f"an object of {', '.join(members)}", hint)
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise PlanError(
                "config", "name", repr(self.name), "a C identifier", "choose letters, digits and _"
            )
