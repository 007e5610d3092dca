"""Chips: a core, memories and a clock, as their data sheets and the emulator's machine models give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.cores import CORES

KIB = 1024
MIB = 1024 * KIB
_KINDS = ("boot", "flash", "sram", "external", "other")
_ADDRESSES = 1 << 32


def check_whole(thing: str, found: object, least: int, most: int | None = None, *, multiple: int = 1) -> None:
    """Raise BoardError where a number of a board's description is no whole one from `least` to `most`."""
    whole = isinstance(found, int) and not isinstance(found, bool)
    if whole and least <= found and (most is None or found <= most) and found % multiple == 0:  # type: ignore[operator]
        return
    allowed = f"{least} or more" if most is None else f"{least} to {most}"
    allowed += "" if multiple == 1 else f", a multiple of {multiple}"
    raise BoardError("board", thing, repr(found), allowed, "mend its description")


@dataclass(frozen=True)
class Memory:
    """A range of addresses.

    name: letters, digits and underscores, as the linker takes it.
    kind: ``boot`` (the vectors, where the core looks for them somewhere else than in flash), ``flash`` (code
    and constants), ``sram``, ``external`` (slower RAM), ``other`` (not linked to).
    Raises BoardError where one is none of these, or the range lies outside of 32 bits.
    """

    name: str
    kind: str
    origin: int
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name):
            allowed, hint = "letters, digits and underscores", "it stands in the linker's script"
            raise BoardError("board", "memory, name", repr(self.name), allowed, hint)
        if self.kind not in _KINDS:
            hint = "choose one of them"
            raise BoardError("board", f"memory {self.name}, kind", repr(self.kind), ", ".join(_KINDS), hint)
        check_whole(f"memory {self.name}, origin", self.origin, 0, _ADDRESSES - 1)
        check_whole(f"memory {self.name}, bytes", self.bytes, 1, _ADDRESSES - self.origin)


@dataclass(frozen=True)
class Chip:
    """One chip, or the programmable-logic image of a prototyping board.

    Attributes
    ----------
    name, core
        The chip's name and its core in `targets.cores.CORES`.
    memories
        Code is linked to the first ``flash``; stack, data and arena to the first ``sram``; an arena that does
        not fit there goes to the first other ``sram`` that it fits, else to the first ``external``.
    clock_hz
        Core clock; for an emulated machine the one of its timers.
    peripherals
        Address ranges (origin, bytes) of devices that firmware may reach.

    Raises BoardError for a core that there is not, a Cortex-M without flash or SRAM, and memories that share a name or an address.
    """

    name: str
    core: str
    clock_hz: int
    memories: tuple[Memory, ...] = ()
    peripherals: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.core != "host" and self.core not in CORES:
            allowed = ", ".join(["host", *CORES])
            raise BoardError(
                "board", f"chip {self.name}, core", repr(self.core), allowed, "choose one of them"
            )
        check_whole(f"chip {self.name}, clock_hz", self.clock_hz, 0)
        kinds = [memory.kind for memory in self.memories]
        bare = self.core in CORES and CORES[self.core].is_microcontroller
        if bare and not {"flash", "sram"} <= set(kinds):
            allowed, hint = "flash and sram at least", "add a Memory of each kind"
            raise BoardError(
                "board", f"chip {self.name}, memories", ", ".join(kinds) or "none", allowed, hint
            )
        ordered = sorted(self.memories, key=lambda memory: memory.origin)
        for first, second in pairwise(ordered):
            if first.origin + first.bytes > second.origin:
                hint = "mend origin or bytes of one"
                found = f"{first.name} and {second.name} share addresses"
                raise BoardError("board", f"chip {self.name}, memories", found, "separate ranges", hint)
        if len({memory.name for memory in self.memories}) < len(self.memories):
            found = ", ".join(memory.name for memory in self.memories)
            raise BoardError("board", f"chip {self.name}, memories", found, "different names", "rename one")

    def arena_memories(self) -> tuple[Memory, ...]:
        """Return the memories that an arena may lie in, in the order in which they are tried."""
        return tuple(m for kind in ("sram", "external") for m in self.memories if m.kind == kind)

    def first(self, kind: str) -> Memory:
        """Return the first memory of a kind, which the chip must have."""
        return next(memory for memory in self.memories if memory.kind == kind)


_CMSDK_DEVICES = ((0x40000000, 64 * MIB),)
_DEVICES = ((0x40000000, 512 * MIB),)


def _mps2(name: str, core: str, external: int) -> Chip:
    """Return an image of the MPS2 board: 4 MB for code, 4 MB for data, 16 MB of slower RAM."""
    memories = (
        Memory("SSRAM1", "flash", 0x00000000, 4 * MIB),
        Memory("SSRAM23", "sram", 0x20000000, 4 * MIB),
        Memory("PSRAM", "external", external, 16 * MIB),
    )
    return Chip(name, core, 25_000_000, memories, _CMSDK_DEVICES)


_PROTOTYPES = (
    _mps2("mps2-an385", "cortex-m3", 0x21000000),
    _mps2("mps2-an386", "cortex-m4", 0x21000000),
    _mps2("mps2-an500", "cortex-m7", 0x60000000),
    Chip(
        "mps2-an505",
        "cortex-m33",
        20_000_000,
        (
            Memory("SSRAM1", "flash", 0x10000000, 4 * MIB),
            Memory("SSRAM23", "sram", 0x38000000, 2 * MIB),
            Memory("PSRAM", "external", 0x80000000, 16 * MIB),
        ),
        _DEVICES,
    ),
    Chip(
        "mps3-an547",
        "cortex-m55",
        32_000_000,
        (
            Memory("ITCM", "boot", 0x10000000, 512 * KIB),
            Memory("SRAM", "flash", 0x11000000, 2 * MIB),
            Memory("SRAM2", "sram", 0x31000000, 4 * MIB),
            Memory("DDR", "external", 0x70000000, 16 * MIB),
        ),
        _DEVICES,
    ),
)

_MICROCONTROLLERS = (
    # No chip: the memories of a Cortex-M7 with 512 KB of SRAM, at addresses that the emulator's prototyping board has memory at.
    Chip(
        "cortex-m7-512kb",
        "cortex-m7",
        25_000_000,
        (Memory("FLASH", "flash", 0x00000000, 4 * MIB), Memory("SRAM", "sram", 0x20000000, 512 * KIB)),
        _CMSDK_DEVICES,
    ),
    # The emulator maps one block of 192 KB where the chip has 128 KB here and 64 KB at 0x10000000.
    Chip(
        "stm32f405-emulated",
        "cortex-m4",
        168_000_000,
        (Memory("FLASH", "flash", 0x08000000, 1 * MIB), Memory("SRAM", "sram", 0x20000000, 192 * KIB)),
        _DEVICES,
    ),
    # Clocks are those after reset: the firmware leaves the oscillators alone.
    Chip(
        "stm32f746ng",
        "cortex-m7",
        16_000_000,
        (Memory("FLASH", "flash", 0x08000000, 1 * MIB), Memory("SRAM", "sram", 0x20000000, 320 * KIB)),
        _DEVICES,
    ),
    Chip(
        "stm32h743zi",
        "cortex-m7",
        64_000_000,
        (
            Memory("FLASH", "flash", 0x08000000, 2 * MIB),
            Memory("AXISRAM", "sram", 0x24000000, 512 * KIB),
            Memory("DTCM", "other", 0x20000000, 128 * KIB),
        ),
        _DEVICES,
    ),
    Chip(
        "nrf52840",
        "cortex-m4",
        64_000_000,
        (Memory("FLASH", "flash", 0x00000000, 1 * MIB), Memory("SRAM", "sram", 0x20000000, 256 * KIB)),
        _DEVICES,
    ),
)

# An operating system hands out the memory of these; what matters is the core.
_APPLICATION_PROCESSORS = (
    Chip("host", "host", 0),
    Chip("cortex-a53-emulated", "cortex-a53", 0),
    Chip("cortex-a7-emulated", "cortex-a7", 0),
    Chip("rp3a0", "cortex-a53", 1_000_000_000),
    Chip("bcm2711", "cortex-a72", 1_500_000_000),
    Chip("tegra210", "cortex-a57", 1_430_000_000),
)

CHIPS: dict[str, Chip] = {
    chip.name: chip for chip in (*_PROTOTYPES, *_MICROCONTROLLERS, *_APPLICATION_PROCESSORS)
}
