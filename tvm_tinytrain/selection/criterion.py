"""TinyTrain's criterion and its ablations: score the layers, take them greedily, train their best channels.

Kwon et al., ICML 2024, §2.2: s_i = P_i / ((‖W_i‖ / max‖W‖) · (M_i / max M)), P_i = Σ_o Δ_o, ‖W_i‖ the
number of weights, M_i the MACs of the forward pass. Layers are taken in descending order of s while both
budgets hold; of each the top-K channels by Δ_o are trained. The paper leaves K, ties and overflow open;
here they are fields of `Greedy`.

The decision, for an implementation in C (arithmetic: see `integers`, all of it exact):

1. q = quantised potentials of all candidates, at once; P_i = Σ_o q_o in uint64. The potentials of "l2" are
   ‖w_o‖² (`fisher.squared_norms`), those of "random" are draws (`fisher.random_potentials`).
2. score_i = num / den, uint64 each; the maxima over the network are common factors and drop out ::

       tinytrain       P_i / (weights_i · MACs_i)      fisher            P_i / 1
       fisher/memory   P_i / weights_i                 fisher/compute    P_i / MACs_i
       l2              P_i / 1 with q from ‖w_o‖²      random            draw_i / 1, q from draws

3. Layers in descending score, compared by cross multiplication, ties to the smaller layer id. A layer with
   P_i = 0 is left out.
4. K_i = max(1, ⌊channels_i · n / d⌋), channel_ratio = n / d in lowest terms.
5. For each layer in turn: add its K_i channels of largest q (ties to the smaller channel index) to the plan
   if then both MACs ≤ budget and bytes ≤ budget (MACs asked first). If not: "skip" goes on with the next
   layer, "stop" ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.selection.problem import Candidate, Counts, Problem

Overflow = Literal["skip", "stop"]

SCORES: Mapping[str, Callable[[Candidate], int]] = {
    "tinytrain": lambda c: c.layer.weights * c.layer.forward_macs,
    "fisher": lambda _: 1,
    "fisher/memory": lambda c: c.layer.weights,
    "fisher/compute": lambda c: c.layer.forward_macs,
    "l2": lambda _: 1,
    "random": lambda _: 1,
}
"""Denominator of a layer's score; the numerator is its summed potential, or a draw for "random"."""


@dataclass(frozen=True)
class Greedy:
    """How layers are taken.

    criterion: a key of `SCORES`. channel_ratio: K as a share of a layer's output channels, in (0, 1]; the
    paper shows 1/2, 1/4 and 1/8 without saying which it used, and 1/4 did best on average in a pilot on six
    domains (5-way 5-shot, MCUNet). overflow: what happens at a layer that does not fit: "skip" goes on ("as
    many layers as possible", the default), "stop" is the paper's prefix of the ranking taken literally.
    """

    criterion: str = "tinytrain"
    channel_ratio: Fraction = Fraction(1, 4)
    overflow: Overflow = "skip"

    def __post_init__(self) -> None:
        try:
            ratio = Fraction(self.channel_ratio).limit_denominator(1024)
        except (TypeError, ValueError, OverflowError) as error:
            found, allowed = repr(self.channel_ratio), "a number above 0, at most 1"
            raise PlanError(
                "selection", "channel_ratio", found, allowed, "the paper leaves it open"
            ) from error
        object.__setattr__(self, "channel_ratio", ratio)
        if not 0 < ratio <= 1:
            hint = "the paper leaves it open; 1/4 trains a quarter of a layer's channels"
            raise PlanError("selection", "channel_ratio", ratio, "above 0, at most 1", hint)
        for name, value, choices in (
            ("criterion", self.criterion, tuple(SCORES)),
            ("overflow", self.overflow, ("skip", "stop")),
        ):
            if value not in choices:
                raise PlanError("selection", name, value, ", ".join(choices), "choose one of these")

    def channels(self, candidate: Candidate) -> int:
        """K for this layer."""
        return max(
            1, candidate.layer.channels * self.channel_ratio.numerator // self.channel_ratio.denominator
        )


def rank(problem: Problem, criterion: str, draws: Mapping[int, int] | None = None) -> list[int]:
    """Positions of the candidates by descending score, ties to the smaller layer id; without those of no
    potential.

    draws: {layer id: score} of the criterion "random".
    """

    def score(candidate: Candidate) -> Fraction:
        numerator = candidate.potential if draws is None else draws[candidate.layer.id]
        return Fraction(numerator, SCORES[criterion](candidate))

    found = [i for i, c in enumerate(problem.candidates) if c.potential > 0]
    return sorted(found, key=lambda i: (-score(problem.candidates[i]), i))


def take_greedily(problem: Problem, greedy: Greedy, ranking: list[int]) -> Counts:
    """Add whole layers (K channels each) in the order of the ranking while both budgets hold."""
    counts = problem.nothing
    for i in ranking:
        trial = (*counts[:i], greedy.channels(problem.candidates[i]), *counts[i + 1 :])
        if problem.feasible(trial):
            counts = trial
        elif greedy.overflow == "stop":
            break
    return counts
