"""From potentials and budgets to an update plan: the one function that a user of selection calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import fsum
from numbers import Integral

from tvm_tinytrain.config import CACHE_FORMATS
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection.accounting import Accounting, ExactAccounting
from tvm_tinytrain.selection.candidates import LAYER_KINDS, LayerKind, of_kind
from tvm_tinytrain.selection.criterion import SCORES, Greedy, Overflow, rank, take_greedily
from tvm_tinytrain.selection.exact import Exact, maximise
from tvm_tinytrain.selection.fisher import FisherMap, random_potentials
from tvm_tinytrain.selection.problem import Budgets, Problem
from tvm_tinytrain.values import as_whole, parse_bytes

LARGEST_WORD = (1 << 32) - 1
PAPER_CANDIDATES = 18
"""The last 6 blocks of 3 layers: what TinyTrain inspects ("30 to 44 % of the layers", Table 11)."""


@dataclass(frozen=True)
class TaskAdaptive:
    """Who is updated is decided by the user's own samples.

    criterion: "tinytrain" (the paper's), its ablations "fisher", "fisher/memory", "fisher/compute", "l2",
    "random", or "exact". channel_ratio, overflow: see `Greedy`; "exact" needs neither. candidates: how many
    of the last layers may be trained, or their ids; among the last ones those that have no kernels over single channels
    (grouped convolutions that are not depthwise, transposed ones, stride together with dilation) are left out.
    blocks: take the layers of so many last blocks, and what follows
    them, instead. layer_kind: "all" of these layers, their "expansions" (the first 1×1 convolution of an inverted
    bottleneck) alone, as accurate or more so in half of the memory (docs/fewshot.md), or "auto": the
    expansions where there are any, otherwise all. seed: of the criterion "random".
    cached_samples: a library's cache of the frozen prefix keeps more of each sample where it then has room for
    so many. cache_format: how it keeps them: "float32", "float16" or "int8". cache_bytes: a number, or "64KB", of a
    pool of its own for the cache, in the section that a firmware names by TT_CACHE_SECTION (external RAM, say) and
    beside the memory budget; 0 takes what the arena has to spare. A library has one such pool for all its arenas:
    only one of them may use the cache at a time, from its first store to its last use.
    """

    criterion: str = "tinytrain"
    channel_ratio: Fraction = Fraction(1, 4)
    overflow: Overflow = "skip"
    candidates: int | tuple[int, ...] = PAPER_CANDIDATES
    seed: int = 0
    cached_samples: int = 25
    cache_format: str = "float32"
    cache_bytes: int | str = 0
    blocks: int | None = None
    layer_kind: LayerKind = "all"
    greedy: Greedy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.criterion not in (*SCORES, "exact"):
            allowed = ", ".join((*SCORES, "exact"))
            raise PlanError("selection", "criterion", repr(self.criterion), allowed, "choose one of these")
        if not _are_layers(self.candidates):
            allowed = "a number of layers from 1, or layer ids"
            raise PlanError("selection", "candidates", repr(self.candidates), allowed, "see module.report()")
        several = isinstance(self.candidates, (tuple, list))
        candidates = tuple(map(int, self.candidates)) if several else int(self.candidates)  # type: ignore[arg-type]
        object.__setattr__(self, "candidates", candidates)
        if self.layer_kind not in LAYER_KINDS:
            allowed = ", ".join(LAYER_KINDS)
            raise PlanError("selection", "layer_kind", repr(self.layer_kind), allowed, "choose one of these")
        if self.blocks is not None:
            blocks = as_whole("selection", "blocks", self.blocks, 1, "None takes `candidates`")
            object.__setattr__(self, "blocks", blocks)
        if self.cache_format not in CACHE_FORMATS:
            allowed = ", ".join(CACHE_FORMATS)
            raise PlanError(
                "selection", "cache_format", repr(self.cache_format), allowed, "choose one of these"
            )
        for name, value, low, high, hint in (
            ("seed", self.seed, None, None, "the same seed draws the same channels"),
            ("cached_samples", self.cached_samples, 0, LARGEST_WORD, "0 keeps the least of each sample"),
            (
                "cache_bytes",
                parse_bytes(self.cache_bytes, "cache_bytes"),
                0,
                LARGEST_WORD,
                "0 takes what the arena has to spare",
            ),
        ):
            object.__setattr__(self, name, as_whole("selection", name, value, low, hint, high))
        criterion = "tinytrain" if self.criterion == "exact" else self.criterion
        greedy = Greedy(criterion, self.channel_ratio, self.overflow)
        object.__setattr__(self, "greedy", greedy)
        object.__setattr__(self, "channel_ratio", greedy.channel_ratio)

    def layers(self, accounting: Accounting) -> tuple[int, ...]:
        """Ids of the candidate layers."""
        network = accounting.network
        if self.blocks is not None:
            chosen = network.last_blocks(self.blocks)
        else:
            chosen = network.last(self.candidates) if isinstance(self.candidates, int) else self.candidates
        return of_kind(self.layer_kind, network.layers, chosen)


def _are_layers(candidates: object) -> bool:
    if not isinstance(candidates, (tuple, list)):
        return _is_index(candidates, 1)
    return all(_is_index(i, 0) for i in candidates)


def _is_index(value: object, low: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= low


@dataclass(frozen=True)
class Selection:
    """A plan and what it costs.

    ranking: candidate layers by descending score of the criterion ("tinytrain"'s for "exact"). captured,
    available: summed quantised potential of the selected channels and of all candidates. memory_bytes,
    macs: by the accounting. proven: no plan within the budgets captures more. The plan is empty where no
    channel fits.
    """

    plan: UpdatePlan
    criterion: str
    ranking: tuple[int, ...]
    captured: int
    available: int
    memory_bytes: int
    macs: int
    proven: bool

    @property
    def share(self) -> float:
        """Captured share of the potential, 0 to 1."""
        return self.captured / self.available if self.available else 0.0


def select(
    accounting: Accounting,
    budgets: Budgets,
    potentials: FisherMap | None = None,
    options: TaskAdaptive | None = None,
) -> Selection:
    """Select channels within the budgets.

    Parameters
    ----------
    accounting
        The network's costs, by the paper's rules or exact.
    budgets
        Integers; `Budgets.of` makes them of a `config.Budget`.
    potentials
        Of every candidate layer: Fisher potentials; for "l2" `squared_norms` of the weights; for "random"
        None.
    options
        Criterion and its fields; the default is the paper's.

    Raises
    ------
    PlanError
        Potentials are missing, of another network, negative or not finite; or the memory planner's answer
        for the plan exceeds the one for the same number of channels.
    BudgetError
        Not even the frozen network fits into the memory budget.
    """
    options = options or TaskAdaptive()
    chosen = options.layers(accounting)
    draws = None
    if options.criterion == "random":
        channels = {layer: accounting.network[layer].channels for layer in chosen}
        draws, potentials = random_potentials(channels, options.seed)
    if potentials is None:
        hint = "pass a FisherMap, or squared_norms(weights) for l2"
        raise PlanError("selection", "potentials", None, f"a map for the criterion {options.criterion}", hint)
    problem = Problem.make(accounting, potentials, budgets, chosen)
    ranking = rank(problem, options.greedy.criterion, draws)
    if options.criterion == "exact":
        counts, proven = maximise(problem, Exact(options.channel_ratio))
    else:
        counts, proven = take_greedily(problem, options.greedy, ranking), False
    plan = problem.plan(counts)
    _check_planner(accounting, budgets, plan)
    return Selection(
        plan=plan,
        criterion=options.criterion,
        ranking=tuple(problem.candidates[i].layer.id for i in ranking),
        captured=problem.value(counts),
        available=problem.available,
        memory_bytes=problem.memory(counts),
        macs=problem.macs(counts),
        proven=proven,
    )


def _check_planner(accounting: Accounting, budgets: Budgets, plan: UpdatePlan) -> None:
    if isinstance(accounting, ExactAccounting) and accounting.memory_of is not None:
        needed = accounting.memory_of(plan)
        if needed > budgets.memory_limit:
            raise PlanError(
                "selection",
                "memory planner",
                f"{needed} bytes for the plan",
                f"{budgets.memory_bytes} as for the same numbers of channels",
                "the planner must not depend on which channels a layer trains",
            )


def captured_share(potentials: FisherMap, plan: UpdatePlan, layers: Iterable[int] | None = None) -> float:
    """Return the share of the potentials of `layers` (default: all of the map) that any plan captures, 0 to
    1.

    Layers of the plan that are not counted capture nothing; a channel counts as captured when it is in
    `outputs`.
    """
    counted = list(potentials if layers is None else layers)
    whole = fsum(float(v) for layer in counted for v in potentials[layer])
    part = fsum(
        float(potentials[layer][channel])
        for layer in counted
        if layer in plan
        for channel in plan[layer].outputs
    )
    return part / whole if whole else 0.0
