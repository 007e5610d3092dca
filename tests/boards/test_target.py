"""Targets: every way to write one, and what is refused."""

from __future__ import annotations

import pytest

from tvm_tinytrain.errors import TargetError
from tvm_tinytrain.targets.cores import CORES
from tvm_tinytrain.targets.target import Target, parse_target


@pytest.mark.parametrize(
    ("written", "kind", "mcpu", "compiler"),
    [
        ("host", "c", "host", "gcc"),
        ("c", "c", "host", "gcc"),
        ("c -mcpu=cortex-m7", "c", "cortex-m7", "arm-none-eabi-gcc"),
        ("c -mcpu=cortex-m4f", "c", "cortex-m4", "arm-none-eabi-gcc"),
        ("c --mcpu=cortex-m0plus", "c", "cortex-m0plus", "arm-none-eabi-gcc"),
        ('{"kind": "c", "mcpu": "cortex-m55"}', "c", "cortex-m55", "arm-none-eabi-gcc"),
        ({"kind": "c", "mcpu": "cortex-m33"}, "c", "cortex-m33", "arm-none-eabi-gcc"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53", "llvm", "cortex-a53", "aarch64-linux-gnu-gcc"),
        ("llvm -mtriple=aarch64-linux-gnu", "llvm", "cortex-a53", "aarch64-linux-gnu-gcc"),
        (
            "llvm -mtriple=armv7a-linux-gnueabihf -mcpu=cortex-a7",
            "llvm",
            "cortex-a7",
            "arm-linux-gnueabihf-gcc",
        ),
    ],
)
def test_ways_to_write_a_target(written: object, kind: str, mcpu: str, compiler: str) -> None:
    target = parse_target(written)
    assert (target.kind, target.mcpu, target.compiler) == (kind, mcpu, compiler)
    assert parse_target(str(target)) == parse_target(target.to_json()) == parse_target(target) == target


@pytest.mark.parametrize("mcpu", [name for name, core in CORES.items() if not name.startswith("x86")])
def test_tvm_knows_every_core(mcpu: str) -> None:
    target = parse_target({"kind": "llvm" if "-a" in mcpu else "c", "mcpu": mcpu})
    of_tvm = target.to_tvm()
    assert of_tvm.attrs["mcpu"] == mcpu
    assert parse_target(of_tvm) == target


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "c -mcpu=cortex-m8",
            r"core 'cortex-m8'; allowed host, cortex-m0plus, .*cortex-m55.*-mcpu=cortex-m7",
        ),
        ("rust", r"kind 'rust'; allowed host, c, llvm"),
        ("c -march=armv7e-m", r"option 'march'; allowed kind, mcpu, mtriple"),
        ("c cortex-m7", r"found cortex-m7; allowed options of the form"),
        ("c -mtriple=aarch64-linux-gnu -mcpu=cortex-m7", "triple aarch64-linux-gnu with cortex-m7"),
        ("llvm -mtriple=riscv64-linux-gnu", "triple riscv64-linux-gnu without a core"),
        ("", "nothing"),
        ("{broken", "JSON"),
        (7, r"target: 7: found int"),
    ],
)
def test_what_is_refused(written: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        parse_target(written)


def test_flags_say_how_to_round() -> None:
    for core in CORES.values():
        fused = "fma" in core.features
        assert ("-ffp-contract=fast" if fused else "-ffp-contract=off") in Target("c", core.name, "").cflags
        assert "-ffast-math" not in core.cflags
