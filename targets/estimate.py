"""Cycles, seconds and energy from a count of instructions: estimates, nothing here was measured on silicon.

An emulator counts instructions exactly and knows nothing of dual issue, caches, wait states or the latency of
the floating-point unit. The factors below turn that count into the order of magnitude of a real chip's figures:

- instructions per cycle of each core in floating-point loops, from its pipeline: one in order for M0+ to M33,
  less where a multiply-add takes more than a cycle, more where two instructions start at once (M7, A53 ...);
- energy per cycle of a chip: the supply current per megahertz of its data sheet at its usual voltage, all
  peripherals off; for Linux boards the power under load less that at rest, divided by the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.boards import Board

# Instructions per cycle, estimated.
_INSTRUCTIONS_PER_CYCLE: dict[str, float] = {
    "cortex-m0plus": 0.7,
    "cortex-m3": 0.75,
    "cortex-m4": 0.75,
    "cortex-m7": 1.2,
    "cortex-m33": 0.8,
    "cortex-m55": 0.7,
    "cortex-a7": 0.9,
    "cortex-a53": 1.0,
    "cortex-a57": 1.6,
    "cortex-a72": 1.6,
    "cortex-a76": 2.2,
}

# Nanojoules per cycle, estimated; only for chips that exist.
_NANOJOULES_PER_CYCLE: dict[str, float] = {
    "stm32f746ng": 1.6,
    "stm32h743zi": 0.9,
    "nrf52840": 0.16,
    "rp3a0": 1.0,
    "bcm2711": 1.7,
    "tegra210": 1.8,
}


@dataclass(frozen=True)
class Estimate:
    """What a run may take. energy_joules is None where the chip's consumption is not known."""

    instructions: int
    cycles: float
    seconds: float
    energy_joules: float | None


def estimate(board: Board, instructions: int, counted_on: Board) -> Estimate:
    """Estimate a run on `board` from its count of instructions on `counted_on`, an emulated board whose core has the same instructions.

    Raises
    ------
    BoardError
        The board's core or clock is not known (this machine, or a user-mode emulator), or the count is another
        core's, or not one of instructions.
    """
    core, clock = board.chip.core, board.chip.clock_hz
    if core not in _INSTRUCTIONS_PER_CYCLE or clock == 0:
        hint = "estimate for a board with a chip that exists"
        raise BoardError("estimate", board.name, "no clock", "a board with a clock", hint)
    if not counted_on.is_emulated or not board.target.core.has_instructions_of(counted_on.target.core):
        found = f"a count on {counted_on.name} ({counted_on.target.core.name})"
        allowed, hint = f"instructions of an emulated core like {core}", "count on an emulated board like it"
        raise BoardError("estimate", board.name, found, allowed, hint)
    cycles = instructions / _INSTRUCTIONS_PER_CYCLE[core]
    per_cycle = _NANOJOULES_PER_CYCLE.get(board.chip_name)
    energy = None if per_cycle is None else cycles * per_cycle * 1e-9
    return Estimate(instructions, cycles, cycles / clock, energy)
