"""Random memory problems for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tvm_tinytrain.plan import Buffer, MemoryProblem


@st.composite
def buffers(draw: st.DrawFn, name: str, steps: int, fixed: bool) -> Buffer:
    lower = draw(st.integers(0, steps - 1))
    upper = draw(st.integers(lower + 1, steps))
    align = draw(st.sampled_from([1, 4, 8, 16]))
    size = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["activation", "gradient", "mask"]))
    offset = align * draw(st.integers(0, 6)) if fixed and draw(st.integers(0, 3)) == 0 else None
    return Buffer(name, size, lower, upper, align, kind, offset=offset)


@st.composite
def problems(draw: st.DrawFn, most: int, steps: int = 8, fixed: bool = False) -> MemoryProblem:
    """A problem without capacity of at most `most` buffers, with mixed alignments and odd sizes."""
    count = draw(st.integers(0, most))
    return MemoryProblem(tuple(draw(buffers(f"b{index}", steps, fixed)) for index in range(count)))
