"""Buffer, MemoryProblem and MemoryPlan: what they refuse, the CSV form, pools."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.memory.strategies import problems
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem


@given(problems(most=8, fixed=True))
def test_csv_round_trip(problem: MemoryProblem) -> None:
    assert MemoryProblem.from_csv(problem.to_csv()) == problem


def test_csv_of_plain_buffers_has_the_four_columns_of_minimalloc() -> None:
    text = "id,lower,upper,size\na,0,2,16\nb,1,3,8\n"
    problem = MemoryProblem.from_csv(text, capacity=24)
    assert problem == MemoryProblem((Buffer("a", 16, 0, 2, align=1), Buffer("b", 8, 1, 3, align=1)), 24)
    assert problem.to_csv() == text


def test_csv_columns_may_come_in_any_order() -> None:
    problem = MemoryProblem.from_csv(
        "size,id,kind,upper,lower,alignment,pool,offset\n8,a,mask,3,1,4,tcm,12\n"
    )
    assert problem.buffers == (Buffer("a", 8, 1, 3, 4, "mask", "tcm", 12),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "csv line 1"),
        ("id,lower,upper\na,0,1\n", "csv line 1: found id,lower,upper; .*write at least id,lower,upper,size"),
        ("id,lower,upper,size,colour\na,0,1,8,red\n", "csv line 1: found .*colour"),
        ("id,lower,upper,size\na,0,1\n", r"csv line 2: found \['a', '0', '1', None\]"),
        ("id,lower,upper,size\na,0,1,8\nb,0,1,8,9\n", "csv line 3: .*count the commas"),
        ("id,lower,upper,size\na,0,x,8\n", "csv line 2, upper: found 'x'; allowed an integer"),
        ("id,lower,upper,size\na,2,2,8\n", r"buffer 'a': found lifetime \[2, 2\)"),
    ],
)
def test_wrong_csv_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        MemoryProblem.from_csv(text)


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ({"size": 0, "lower": 0, "upper": 1}, "size 0; allowed at least 1 byte"),
        ({"size": 8, "lower": 3, "upper": 3}, r"lifetime \[3, 3\); allowed 0 <= lower < upper"),
        ({"size": 8, "lower": -1, "upper": 3}, r"lifetime \[-1, 3\)"),
        ({"size": 8, "lower": 0, "upper": 1, "align": 12}, "align 12; allowed a power of two"),
        ({"size": 8, "lower": 0, "upper": 1, "align": 0}, "align 0"),
        (
            {"size": 8, "lower": 0, "upper": 1, "offset": 4},
            "fixed offset 4; allowed a non-negative multiple of 8",
        ),
    ],
)
def test_a_wrong_buffer_is_refused(buffer: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match="memory problem: buffer 'b': found " + message):
        Buffer("b", **buffer)  # type: ignore[arg-type]


def test_lifetimes_are_half_open() -> None:
    assert not Buffer("a", 8, 0, 2).overlaps(Buffer("b", 8, 2, 4))
    assert Buffer("a", 8, 0, 3).overlaps(Buffer("b", 8, 2, 4))


def test_a_problem_has_unique_names_one_pool_and_a_size() -> None:
    with pytest.raises(PlanError, match="buffer 'a': found two buffers of that name"):
        MemoryProblem((Buffer("a", 8, 0, 1), Buffer("a", 8, 1, 2)))
    with pytest.raises(PlanError, match=r"pools: found psram, sram; .*MemoryProblem\.split"):
        MemoryProblem((Buffer("a", 8, 0, 1), Buffer("b", 8, 0, 1, pool="psram")))
    with pytest.raises(PlanError, match="capacity: found -1 bytes"):
        MemoryProblem((), capacity=-1)


def test_split_makes_one_problem_for_each_pool() -> None:
    a, b, c = Buffer("a", 8, 0, 1), Buffer("b", 8, 0, 1, pool="psram"), Buffer("c", 8, 0, 1)
    split = MemoryProblem.split([a, b, c], {"sram": 64})
    assert split == {"psram": MemoryProblem((b,)), "sram": MemoryProblem((a, c), 64)}
    assert list(split) == ["psram", "sram"]


def test_a_plan_reads_like_a_mapping() -> None:
    plan = MemoryPlan((("a", 0), ("b", 16)), 24, 24)
    assert (plan["b"], "a" in plan, "c" in plan, list(plan), len(plan)) == (16, True, False, ["a", "b"], 2)
    assert hash(plan) == hash(MemoryPlan((("a", 0), ("b", 16)), 24, 24))
    with pytest.raises(PlanError, match="memory plan: buffer 'c': found no offset"):
        plan["c"]
