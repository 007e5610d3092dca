"""What compilers and binary utilities say of the emitted sources, alone in their folder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.emit.libraries import M7, STRICT, Small, compile_objects, library, m7_flags, small
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import Adam, Budget, FullTrain, LastLayer
from tvm_tinytrain.emit.c_kernel import MAX_STACK_ARRAY
from tvm_tinytrain.micro import Session
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import TaskAdaptive
from tvm_tinytrain.targets.runtime_files import runtime_folder

MAX_STACK_BYTES = 512
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam accumulated": {"optimizer": Adam(), "accumulate": True, "name": "Big_2"},
    "partly": {"update": UpdatePlan.from_channels({0: (0,), 1: (1,), 3: (0, 2)})},
}
FIRMWARE = (
    "-Wconversion",
    "-Wdouble-promotion",
    "-Wshadow",
    "-Wcast-qual",
    "-Wundef",
    "-Wmissing-prototypes",
)
"""What firmware teams switch on besides -Wall and -Wextra."""
NOT_FOR_CALLERS = ("tt_search.h", "tt_session_calls.h", "tt_small_internal.h", "tt_cortex_m.h")
M7_COMPILER = pytest.mark.needs("arm-none-eabi-gcc")
FROM_LIBC = {"memcpy", "memset", "expf", "logf", "sqrtf", "fminf", "fmaxf"}


@pytest.fixture(params=OPTIONS)
def module(request: pytest.FixtureRequest) -> TrainModule:
    return library(**OPTIONS[request.param])


@pytest.mark.host_compiler
def test_host_compiler_has_nothing_to_say(module: TrainModule, tmp_path: Path) -> None:
    compile_objects(module, tmp_path, "gcc", ["-O2", "-Wconversion", "-Wno-sign-conversion", "-Wshadow"])


@M7_COMPILER
def test_m7_compiler_has_nothing_to_say_and_state_lies_in_the_arena(
    module: TrainModule, tmp_path: Path
) -> None:
    objects = compile_objects(
        module, tmp_path, "arm-none-eabi-gcc", [*m7_flags(), "-fstack-usage", *FIRMWARE]
    )
    for function, size in stack_bytes(tmp_path).items():
        assert size < MAX_STACK_BYTES, f"{function} uses {size} bytes of stack"
    symbols = [line for path in objects for line in run("arm-none-eabi-nm", str(path)).splitlines()]
    kinds = {line.split()[-1]: line.split()[-2] for line in symbols}
    assert not {name: kind for name, kind in kinds.items() if kind in "DdBbCc"}, "writable data"
    defined = {name for name, kind in kinds.items() if kind in "TtRrVv"}
    assert {line.split()[-1] for line in symbols if line.split()[-2] == "U"} - defined <= FROM_LIBC


@pytest.mark.host_compiler
def test_header_is_also_cxx(module: TrainModule, tmp_path: Path) -> None:
    module.write(tmp_path)
    header = f"tt_{module.name}.h"
    user = f'#include "{header}"\nint main() {{ return static_cast<int>(tt_{module.name}_library.num_entries); }}\n'
    (tmp_path / "user.cc").write_text(user)
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "user.cc"]
    subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.host_compiler
def test_a_cxx_program_links_with_every_function_of_the_runtime(tmp_path: Path) -> None:
    """It is the firmware of this machine whose tables are C++, and takes the address of what any public header declares."""
    given = {"example_inputs": (torch.zeros(1, *Small.shape),), "budget": Budget(memory="64KB")}
    module = build(small(), "host", name="small", update=TaskAdaptive(candidates=2), **given)
    objects = compile_objects(module, tmp_path, "gcc", [])
    runtime = runtime_folder()
    headers = [*tmp_path.glob("*.h"), *runtime.glob("include/*.h"), *runtime.glob("loop/*.h")]
    texts = {p.name: p.read_text() for p in headers if p.name not in NOT_FOR_CALLERS}
    functions = {f for t in texts.values() for f in re.findall(r"^\w[\w *]*\b(tt_\w+)\(", t, re.MULTILINE)}
    assert {"tt_small_step", "tt_rows_install", "tt_server_feed", "tt_port_read", "tt_loop_once"} <= functions
    user = [f'#include "{name}"' for name in sorted(texts)]
    user += ["extern void (*const functions[])();", "void (*const functions[])() = {"]
    user += [f"    reinterpret_cast<void (*)()>(&{function})," for function in sorted(functions)]
    user += ["};", "const tt_library *const tt_active_library = &tt_small_library;"]
    user += ["const tt_standalone_task tt_standalone = tt_standalone_task();", ""]
    (tmp_path / "user.cc").write_text("\n".join(user))
    folders = [f"-I{tmp_path}", f"-I{runtime / 'include'}", f"-I{runtime / 'loop'}"]
    strict = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["g++", *strict, *folders, "-c", "user.cc"], cwd=tmp_path, check=True)
    sources = [*runtime.glob("src/*.c"), runtime / "loop" / "tt_loop.c", runtime / "port" / "process.c"]
    arena = f"-DTT_LINKED_ARENA_BYTES={module.metadata['memory']['arena_bytes']}"
    subprocess.run(["gcc", arena, *folders, "-c", *map(str, sources)], cwd=tmp_path, check=True)
    linked = ["user.o", *(p.name for p in objects), *(f"{p.stem}.o" for p in sources)]
    subprocess.run(["g++", *linked, "-lpthread", "-lm", "-o", "user"], cwd=tmp_path, check=True)


@pytest.mark.host_compiler
def test_header_stands_alone(module: TrainModule, tmp_path: Path) -> None:
    module.write(tmp_path)
    name = f"tt_{module.name}"
    (tmp_path / "user.c").write_text(
        f'#include "{name}.h"\n#include "{name}.h"\nint bytes = {name.upper()}_ARENA_BYTES;\n'
    )
    subprocess.run(["gcc", *STRICT, "-c", "user.c"], cwd=tmp_path, check=True)


@pytest.mark.host_compiler
def test_macros_that_two_libraries_share_are_no_secret(tmp_path: Path) -> None:
    """The header of `net` behind that of `Net` was skipped, and its arena had the other's size."""
    for name, update in (("Net", LastLayer()), ("net", FullTrain())):
        library(name=name, update=update).write(tmp_path)
    (tmp_path / "user.c").write_text('#include "tt_Net.h"\n#include "tt_net.h"\n')
    result = subprocess.run(["gcc", *STRICT, "-c", "user.c"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and '"TT_NET_ARENA_BYTES" redefined' in result.stderr


@pytest.mark.host_compiler
def test_infinite_constants_compile(tmp_path: Path) -> None:
    net = small()
    with torch.no_grad():
        net.head.bias[1] = float("-inf")
    module = build(net, example_inputs=(torch.zeros(1, *Small.shape),), name="small")
    assert b"(-INFINITY)" in module.files["tt_small_params.c"]
    compile_objects(module, tmp_path, "gcc", ["-O2"])


class Odd(nn.Module):
    """A frozen parameter of one number, and a tensor of more axes than a table of tensors has room for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.many = nn.Parameter(torch.arange(8.0).reshape(1, 1, 2, 1, 2, 1, 2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [1, 3] of an image [1, 1, 2, 1, 2, 1, 2]."""
        return self.head((x * self.scale * self.many).reshape(1, 8))


@pytest.mark.host_compiler
@pytest.mark.parametrize("also", [(), ("scale", "many")], ids=["frozen", "trained"])
def test_tensors_of_no_axis_and_of_seven(also: tuple[str, ...], tmp_path: Path) -> None:
    x, net = torch.ones(1, 1, 2, 1, 2, 1, 2), Odd().eval()
    module = build(net, "host", example_inputs=(x,), also_train=also)
    compile_objects(module, tmp_path, "gcc", ["-O2"])
    with Session(module, board="host") as session:
        shapes = {name: tensor.shape for name, tensor in session.tensors.items()}
        assert (shapes["scale"], shapes["many"], shapes["x"]) == ((), *[(1, 2, 1, 2, 1, 2)] * 2)
        np.testing.assert_allclose(session.predict(x.numpy()), net(x).detach().numpy(), rtol=1e-5)
        session.write("x", x.numpy())
        assert session.step(x.numpy(), 1) > 0.0


@M7_COMPILER
def test_two_task_adaptive_libraries_in_one_program(tmp_path: Path) -> None:
    """The files that carry no library's name are the same in both: they are compiled once."""
    made = {}
    for name in ("first", "second"):
        given = {"example_inputs": (torch.zeros(1, *Small.shape),), "budget": Budget(memory="64KB")}
        made[name] = build(small(), M7, name=name, update=TaskAdaptive(candidates=2), **given)
        made[name].write(tmp_path / name)
    own = ("tt_first", "tt_second", "metadata.json")
    shared = [{n: c for n, c in m.files.items() if not n.startswith(own)} for m in made.values()]
    assert shared[0] == shared[1] and "tt_select.c" in shared[0]
    for name in shared[1]:
        (tmp_path / "second" / name).unlink()
    sources = sorted(str(path) for path in tmp_path.glob("*/*.c"))
    flags = [*STRICT, *FIRMWARE, *m7_flags(), f"-I{tmp_path / 'first'}", "-r", "-nostdlib", "-o"]
    subprocess.run(["arm-none-eabi-gcc", *flags, str(tmp_path / "both.o"), *sources], check=True)


def test_text(module: TrainModule) -> None:
    sources = {
        name: content.decode() for name, content in module.files.items() if name.endswith((".c", ".h"))
    }
    included = {line for text in sources.values() for line in re.findall(r"#include\s+(\S+)", text)}
    own = {f'"{name}"' for name in sources}
    assert included <= own | {"<stddef.h>", "<stdint.h>", "<string.h>", "<math.h>"}
    everything = "\n".join(sources.values())
    assert not re.search(r"\b(malloc|calloc|realloc|free|alloca|goto|setjmp)\b", everything)
    assert not re.search(r"tvm/|TVM[A-Z]|dlpack|DLTensor", everything)
    assert not re.search(r"^static (?!const|inline|int init_all)", everything, re.MULTILINE)


def test_no_large_array_on_the_stack(module: TrainModule) -> None:
    kernels = module.files[f"tt_{module.name}_kernels.c"].decode()
    sizes = {"float": 4, "int32_t": 4, "uint8_t": 1, "int8_t": 1, "double": 8, "int64_t": 8}
    for ctype, name, count in re.findall(r"^ +(\w+) (\w+)\[(\d+)\];", kernels, re.MULTILINE):
        assert sizes[ctype] * int(count) <= MAX_STACK_ARRAY, name
    assert not re.search(r"^ +\w+ \w+\[[^\]0-9]", kernels, re.MULTILINE), "an array of variable size"


def test_kernels_call_no_kernels_and_every_kernel_is_called(module: TrainModule) -> None:
    prefix = f"tt_{module.name}_"
    kernels = module.files[f"{prefix}kernels.c"].decode()
    entries = module.files[f"tt_{module.name}.c"].decode()
    names = set(re.findall(rf"^void ({prefix}\w+)\(", kernels, re.MULTILINE))
    for name in names:
        assert len(re.findall(rf"\b{name}\(", kernels)) == 1, f"{name} is called by a kernel"
        assert re.search(rf"^  {name}\(", entries, re.MULTILINE), f"{name} is not called"


def test_same_c_for_every_target_of_one_kind() -> None:
    """What depends on the core are schedules, not the contract: header and tables' names agree."""
    assert library("host").metadata["entries"] == library(M7).metadata["entries"]
    names = [[t["name"] for t in library(t).metadata["tensors"]] for t in ("host", M7)]
    assert names[0] == names[1]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def stack_bytes(folder: Path) -> dict[str, int]:
    """Bytes of stack by function, as GCC's -fstack-usage writes them beside the objects."""
    rows = [line.split("\t") for path in folder.glob("*.su") for line in path.read_text().splitlines()]
    assert rows
    return {row[0].rsplit(":", 1)[-1]: int(row[1]) for row in rows}
