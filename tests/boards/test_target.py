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
        ("c -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16", "c", "cortex-m4", "arm-none-eabi-gcc"),
        ("host -mcpu=native", "c", "host", "gcc"),
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
        ("c -march=armv7e-m", r"option 'march'; allowed kind, mcpu, mtriple, mattr, keys, mfloat-abi, mfpu;"),
        ("c cortex-m7", r"found cortex-m7; allowed options of the form"),
        ("c -mtriple=aarch64-linux-gnu -mcpu=cortex-m7", "triple aarch64-linux-gnu with cortex-m7"),
        ("llvm -mtriple=riscv64-linux-gnu", "triple riscv64-linux-gnu without a core"),
        ("", "nothing"),
        ("{broken", "JSON"),
        (7, r"target: 7: found int"),
        ("c -mcpu='cortex-m7", "No closing quotation"),
        ({1: 2}, "option 1; allowed kind"),
        ("c -feature.foo=bar", "-feature.foo=bar; allowed options of the core"),
        ("c -mcpu=cortex-m7 -mattr=+foo", r"mattr \+foo of kind c; allowed kind llvm"),
        ({"kind": "llvm", "mattr": 5}, r"mattr 5; allowed \+feature or -feature"),
        ({"kind": "llvm", "mattr": {"a": 1}}, r"mattr \{'a': 1\}; allowed"),
        ({"kind": "llvm", "mattr": ["+avx", 3]}, "3]; allowed"),
        ("llvm -mattr=+avx,,", "mattr '.avx,,'; allowed"),
        ("llvm -mcpu=cortex-a53 -mattr=neon", "mattr 'neon'; allowed"),
        ("c -mcpu=cortex-m7 -mfloat-abi=soft", "mfloat-abi soft with cortex-m7; allowed hard; leave it out"),
        ("c -mcpu=cortex-a53 -mfloat-abi=soft", "mfloat-abi soft with cortex-a53; allowed none"),
        (
            "c -mcpu=cortex-m7 -mfpu=fpv5-d16",
            "mfpu fpv5-d16 with cortex-m7; allowed fpv5-sp-d16; leave it out",
        ),
        ("host -mcpu=cortex-m7", 'host with cortex-m7; allowed host alone; write "c -mcpu=cortex-m7"'),
        ({"kind": "host", "mcpu": "cortex-a53"}, "host with cortex-a53; allowed host alone"),
    ],
)
def test_what_is_refused(written: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        parse_target(written)


@pytest.mark.parametrize(
    ("triple", "mcpu"),
    [
        ("aarch64-linux-android", "cortex-a53"),
        ("aarch64-apple-darwin", "cortex-a53"),
        ("aarch64-unknown-linux-musl", "cortex-a53"),
        ("aarch64-none-elf", "cortex-a53"),
        ("arm64-apple-macos", None),
        ("x86_64-apple-darwin", None),
        ("x86_64-linux-gnux32", None),
        ("x86_64-pc-windows-msvc", "x86-64-v3"),
        ("arm-linux-gnueabi", "cortex-a7"),
        ("arm-none-eabi", "cortex-a7"),
        ("arm-linux-gnueabihf", "cortex-m7"),
        ("thumbv7em-apple-ios", "cortex-m7"),
    ],
)
def test_another_system_is_refused(triple: str, mcpu: str | None) -> None:
    with pytest.raises(TargetError, match=f"found triple {triple} with"):
        parse_target({"kind": "llvm", "mtriple": triple, "mcpu": mcpu})


@pytest.mark.parametrize(
    ("triple", "mcpu", "meant"),
    [
        ("aarch64-unknown-linux-gnu", "cortex-a72", "aarch64-linux-gnu"),
        ("arm64-linux-gnu", "cortex-a53", "aarch64-linux-gnu"),
        ("armv7l-unknown-linux-gnueabihf", "cortex-a7", "arm-linux-gnueabihf"),
        ("x86_64-conda-linux-gnu", "x86-64-v3", "x86_64-linux-gnu"),
        ("x86_64-linux", "x86-64-v3", "x86_64-linux-gnu"),
        ("thumbv7em-none-unknown-eabihf", "cortex-m7", "arm-none-eabi"),
    ],
)
def test_other_names_of_the_same_system(triple: str, mcpu: str, meant: str) -> None:
    assert parse_target(f"llvm -mtriple={triple} -mcpu={mcpu}").mtriple == meant


@pytest.mark.parametrize(
    "option",
    [
        {"mfloat-abi": "soft"},
        {"opt-level": 0},
        {"fast-math": 1},
        {"vector-width": 128},
        {"libs": ["cblas"]},
        {"kind": "c", "march": "armv7e-m"},
    ],
)
def test_options_of_tvms_target_are_no_less_refused_than_text(option: dict[str, object]) -> None:
    from tvm.target import Target as TvmTarget

    core = {} if "kind" in option else {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}
    found = TvmTarget({**core, **option})
    with pytest.raises(TargetError, match=next(name for name in option if name != "kind")):
        parse_target(found)


def test_tvms_targets_are_read() -> None:
    from tvm.target import Target as TvmTarget

    tagged = TvmTarget(
        {"tag": "raspberry-pi/4b-aarch64"}
    )  # with a host, a number of cores and derived features
    assert parse_target(tagged) == Target("llvm", "cortex-a72", "aarch64-linux-gnu", ("+neon",))
    hard = parse_target("llvm -mcpu=cortex-m7")
    assert parse_target(hard.to_tvm()) == parse_target(str(hard.to_tvm())) == hard


def test_features_that_llvm_does_not_know_are_refused() -> None:
    known = parse_target("llvm -mcpu=cortex-a53 -mattr=+dotprod,-neon")
    assert [str(a) for a in known.to_tvm().attrs["mattr"]] == ["+dotprod", "-neon"]
    for feature in ("+nonsense", "-nonsense"):
        unknown = parse_target(f"llvm -mcpu=cortex-a53 -mattr={feature}")
        with pytest.raises(TargetError, match=r"feature '.nonsense'; allowed a feature of aarch64-linux-gnu"):
            unknown.to_tvm()


def test_flags_say_how_to_round() -> None:
    for core in CORES.values():
        fused = "fma" in core.features
        assert ("-ffp-contract=fast" if fused else "-ffp-contract=off") in Target("c", core.name, "").cflags
        assert "-ffast-math" not in core.cflags
