"""From a board's memory map to the linker's script and to the memory protection unit's regions."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.boards import Board
from tvm_tinytrain.targets.chips import Memory

_MOST_REGIONS = 8  # of every core here; Armv8-M may have more


@dataclass(frozen=True)
class Region:
    """A region of the memory protection unit.

    Armv7-M: 2**log2_bytes at a multiple of that; bit i of `off` disables eighth i. Armv8-M: `off` bytes.
    """

    base: int
    log2_bytes: int
    access: str
    off: int = 0


def linker_script(board: Board, arena_memory: Memory) -> str:
    """Return the linker script of a board's firmware.

    The stack lies at the bottom of SRAM, so that an overflow leaves the memory instead of eating data; then
    .data, .bss and the arena, unless `arena_memory` is another memory.
    """
    return linker_script_of(board, (arena_memory,), arena_memory.name)


def linker_script_of(board: Board, arena_memories: tuple[Memory, ...], arena: str) -> str:
    """As `linker_script`, with all memories that the arena may lie in; arena: what stands in the place of the name of one."""
    flash, sram = board.chip.first("flash"), board.chip.first("sram")
    boot = next((memory for memory in board.chip.memories if memory.kind == "boot"), flash)
    memories = dict.fromkeys((boot, flash, sram, *arena_memories))
    lines = [f"  {m.name} : ORIGIN = {m.origin:#010x}, LENGTH = {m.bytes:#x}" for m in memories]
    return _SCRIPT.format(
        memories="\n".join(lines),
        boot=boot.name,
        flash=flash.name,
        sram=sram.name,
        arena=arena,
        stack=board.stack_bytes,
    )


_SCRIPT = """\
MEMORY
{{
{memories}
}}
ENTRY(tt_reset_handler)
SECTIONS
{{
  .vectors : {{ KEEP(*(.vectors)) }} > {boot}
  .text :
  {{
    *(.text .text.*)
    *(.rodata .rodata.*)
    . = ALIGN(8);
  }} > {flash}
  .ARM.exidx : {{ *(.ARM.exidx*) }} > {flash}
  .stack (NOLOAD) : ALIGN(8)
  {{
    tt_stack_lower = .;
    . += {stack};
    tt_stack_upper = .;
  }} > {sram}
  .data : ALIGN(8)
  {{
    tt_data_start = .;
    *(.data .data.*)
    . = ALIGN(8);
    tt_data_end = .;
  }} > {sram} AT > {flash}
  tt_data_load = LOADADDR(.data);
  .tt_arena (NOLOAD) : ALIGN(32) {{ *(.bss.tt_arena) }} > {arena}
  .bss (NOLOAD) : ALIGN(8)
  {{
    tt_bss_start = .;
    *(.bss .bss.* COMMON)
    . = ALIGN(8);
    tt_bss_end = .;
  }} > {sram}
  /DISCARD/ : {{ *(.comment) *(.ARM.attributes) }}
}}
"""


def mpu_regions(board: Board) -> tuple[Region, ...]:
    """Return regions that cover exactly the board's memories and its peripherals.

    Raises
    ------
    BoardError
        The map needs more regions than the unit has.
    """
    if board.target.core.mpu == "none":
        return ()
    span = cover if board.target.core.mpu == "v7m" else whole
    regions: list[Region] = []
    for memory in board.chip.memories:
        access = "TT_ACCESS_CODE" if memory.kind in ("boot", "flash") else "TT_ACCESS_DATA"
        regions += span(memory.origin, memory.bytes, access)
    for origin, size in board.chip.peripherals:
        regions += span(origin, size, "TT_ACCESS_DEVICE")
    if len(regions) > _MOST_REGIONS:
        hint = "give the board memories that are multiples of an eighth of a power of two"
        raise BoardError(
            "memory map", board.name, f"{len(regions)} regions", f"at most {_MOST_REGIONS}", hint
        )
    return tuple(regions)


def whole(origin: int, size: int, access: str) -> list[Region]:
    """Return the one region of Armv8-M that is [origin, origin + size); `off` holds its size.

    The low five bits of both addresses say what the region permits: memory that they are part of is refused.
    """
    for address in (origin, origin + size):
        if address % 32:
            raise _unaligned(address)
    return [Region(origin, 0, access, size)]


def cover(origin: int, size: int, access: str) -> list[Region]:
    """Cover [origin, origin + size) exactly by as few regions as a greedy walk finds."""
    regions: list[Region] = []
    end = origin + size
    while origin < end:
        region, covered = _largest_at(origin, end, access)
        regions.append(region)
        origin += covered
    return regions


def _largest_at(origin: int, end: int, access: str) -> tuple[Region, int]:
    """Return the region that covers most bytes from origin on and nothing outside of [origin, end)."""
    best: tuple[Region, int] | None = None
    for log2_bytes in range(32, 7, -1):
        bytes_, eighth = 1 << log2_bytes, 1 << (log2_bytes - 3)
        base = origin & ~(bytes_ - 1)
        if origin % eighth:
            continue
        first = (origin - base) // eighth
        count = min((end - origin) // eighth, 8 - first)
        if count > 0 and (best is None or count * eighth >= best[1]):
            on = sum(1 << (first + i) for i in range(count))
            best = (Region(base, log2_bytes, access, 0xFF & ~on), count * eighth)
    if best is None:
        raise _unaligned(origin)
    return best


def _unaligned(address: int) -> BoardError:
    hint = "align the memory map to 32 bytes"
    return BoardError("memory map", f"address {address:#x}", "no region fits", "multiples of 32 bytes", hint)


def mpu_initializer(regions: tuple[Region, ...]) -> str:
    """Return the regions as a C initializer list, the value of TT_MPU_REGIONS."""
    return ",".join(f"{{{r.base:#x}u,{r.log2_bytes}u,{r.access},{r.off:#x}u}}" for r in regions)
