"""PlanMemory: a machine that knows who wrote each byte runs the plan; no tensor is overwritten while it is needed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.networks import Mixed, Twice, sample, seeded
from tvm_tinytrain.build import build
from tvm_tinytrain.config import Adam
from tvm_tinytrain.passes.plan_memory import ArenaPlan, plan_arena
from tvm_tinytrain.passes.program import PERSISTENT, Entry, KernelCall, Program, Storage


def run(program: Program, arena: ArenaPlan, workspaces: dict[str, int], rounds: int = 2) -> None:
    """Runs all entries in turn, the caller writing inputs and label before each; raises where a byte is another tensor's."""
    memory: list[str | None] = [None] * arena.arena_bytes

    def write(entry: str, name: str) -> None:
        at, size = arena.offset(entry, name), program.storage(name).bytes
        assert at % 4 == 0 and at + size <= arena.arena_bytes, name
        memory[at : at + size] = [name] * size

    def check(entry: str, name: str) -> None:
        at, size = arena.offset(entry, name), program.storage(name).bytes
        assert set(memory[at : at + size]) == {name}, f"{entry}: {name} was overwritten"

    kept = [s.name for s in program.storages if s.role in PERSISTENT and s.role != "label"]
    for name in kept:
        write(program.entries[0].name, name)
    for _ in range(rounds):
        for entry in program.entries:
            for name in entry.inputs:
                write(entry.name, name)
            written = {*kept, *entry.inputs}
            for call, workspace in zip(entry.calls, arena.workspaces[entry.name], strict=True):
                held = [a for a in call.args if program.storage(a).role not in ("const", "list")]
                for name in held:
                    if name in written:
                        check(entry.name, name)
                    else:
                        write(entry.name, name)
                if workspace is not None:
                    at = arena.plans[entry.name][workspace]
                    memory[at : at + workspaces[call.kernel]] = [workspace] * workspaces[call.kernel]
                for name in held:  # neither a workspace nor another result may lie on an argument
                    check(entry.name, name)
                written.update(held)
            if entry.result is not None:
                check(entry.name, entry.result)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, dict[str, int]]:
    """Chains with skips, in-place updates, several entries, and workspaces."""
    size = st.integers(1, 40)
    storages = [
        Storage("x", (draw(size),), "float32", "input"),
        Storage("label", (1,), "int32", "label"),
        *(Storage(f"w{i}", (draw(size),), "float32", "param") for i in range(draw(st.integers(1, 3)))),
        Storage("c", (draw(size),), "float32", "const"),
    ]
    params = [s.name for s in storages if s.role in ("param", "const")]
    workspaces = {f"k{i}": draw(st.integers(1, 100)) for i in range(draw(st.integers(0, 3)))}
    entries = []
    for name in draw(st.sampled_from([("predict", "step"), ("predict", "accumulate", "apply")])):
        values, calls = ["x"] if name != "apply" else [], []
        for i in range(draw(st.integers(1, 10))):
            readable = values + params
            args = draw(st.lists(st.sampled_from(readable), min_size=1, max_size=3, unique=True))
            if name != "apply" and (i == 0 or draw(st.booleans())):
                values.append(f"{name}.v{i}")
                storages.append(Storage(values[-1], (draw(size),), "float32", "activation"))
                args = [*args, values[-1]]
            calls.append(KernelCall(draw(st.sampled_from(["plain", *workspaces])), tuple(args), ""))
        inputs = () if name == "apply" else ("x",) if name == "predict" else ("x", "label")
        entries.append(Entry(name, tuple(calls), inputs, values[-1] if name != "apply" else None))
    return Program(tuple(storages), tuple(entries)), workspaces


@settings(max_examples=60, deadline=None)
@given(programs())
def test_random_programs(case: tuple[Program, dict[str, int]]) -> None:
    program, workspaces = case
    run(program, plan_arena(program, workspaces), workspaces)


def test_networks() -> None:
    for make, accumulate in ((Mixed, False), (Twice, True)):
        module = build(
            seeded(make),
            "c -mcpu=cortex-m7",
            example_inputs=(sample(*make.shape),),
            optimizer=Adam(),
            accumulate=accumulate,
        )
        sizes = {b.name: b.size for p in module.arena.problems.values() for b in p.buffers}
        workspaces = {
            call.kernel: sizes[workspace]
            for entry in module.program.entries
            for call, workspace in zip(entry.calls, module.arena.workspaces[entry.name], strict=True)
            if workspace is not None
        }
        run(module.program, module.arena, workspaces)
