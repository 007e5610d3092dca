"""Chips: a core, memories and a clock, as their data sheets and the emulator's machine models give them."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Memory:
    """A range of addresses. kind: ``flash`` (code and constants), ``sram`` or ``external`` (slower RAM)."""

    name: str
    kind: str
    origin: int
    bytes: int


@dataclass(frozen=True)
class Chip:
    """One chip, or the programmable-logic image of a prototyping board.

    Attributes
    ----------
    name, core
        The chip's name and its core in `targets.cores.CORES`.
    memories
        Code is linked to the first ``flash``; stack, data and arena to the first ``sram``; an arena that does
        not fit there goes to the first memory that it fits.
    clock_hz
        Core clock; for an emulated machine the one of its timers.
    peripherals
        Address ranges (origin, bytes) of devices that firmware may reach.
    """

    name: str
    core: str
    clock_hz: int
    memories: tuple[Memory, ...] = ()
    peripherals: tuple[tuple[int, int], ...] = ()

    def first(self, kind: str) -> Memory:
        """Return the first memory of a kind, which the chip must have."""
        return next(memory for memory in self.memories if memory.kind == kind)


_CMSDK_DEVICES = ((0x40000000, 64 * MIB),)

_TABLE = (
    Chip("host", "host", 0),
    Chip(
        "mps2-an500",
        "cortex-m7",
        25_000_000,
        (
            Memory("SSRAM1", "flash", 0x00000000, 4 * MIB),
            Memory("SSRAM23", "sram", 0x20000000, 4 * MIB),
            Memory("PSRAM", "external", 0x60000000, 16 * MIB),
        ),
        _CMSDK_DEVICES,
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _TABLE}
