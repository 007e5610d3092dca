"""Reads what is needed of a linked program: allocated sections and function symbols. Little-endian ELF."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from tvm_tinytrain.errors import BoardError

_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_SHF_WRITE, _SHF_ALLOC = 1, 2
_STT_FUNC = 2


@dataclass(frozen=True)
class Section:
    """A section that takes memory at run time."""

    name: str
    address: int
    bytes: int
    writable: bool
    stored: bool  # its content is in the file, and so in flash


@dataclass(frozen=True)
class Function:
    """A function symbol. The address of Thumb code has its lowest bit cleared."""

    name: str
    address: int
    bytes: int


@dataclass(frozen=True)
class Program:
    """The sections and functions of an executable."""

    sections: tuple[Section, ...]
    functions: tuple[Function, ...]

    def name_addresses(self, line: str) -> str:
        """Return a fault's line with the names of the functions that its pc= and lr= lie in."""

        def name(match: re.Match[str]) -> str:
            address = int(match[2], 16) & ~1
            inside = [f.name for f in self.functions if f.address <= address < f.address + f.bytes]
            return f"{match[0]} ({inside[0]})" if inside else match[0]

        return re.sub(r"\b(pc|lr)=(0x[0-9a-f]+)", name, line)

    def address_of(self, function: str) -> int:
        """Return the address of a function; BoardError when the program has none of that name."""
        for symbol in self.functions:
            if symbol.name == function:
                return symbol.address
        raise BoardError(
            "link", f"symbol {function}", "not in the program", "the runtime's symbols", "build again"
        )


@dataclass(frozen=True)
class _Header:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    bytes: int
    link: int


def read_program(path: Path) -> Program:
    """Read an executable.

    Raises
    ------
    BoardError
        The file is no little-endian ELF file.
    """
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        raise BoardError("link", path.name, data[:6].hex(), "a little-endian ELF file", "build again")
    wide = data[4] == 2
    headers = _section_headers(data, wide)
    names = headers[struct.unpack_from("<H", data, 62 if wide else 50)[0]]
    sections = tuple(
        Section(
            _text(data, names.offset + header.name),
            header.address,
            header.bytes,
            bool(header.flags & _SHF_WRITE),
            header.type != _SHT_NOBITS,
        )
        for header in headers
        if header.flags & _SHF_ALLOC and header.bytes
    )
    return Program(sections, _functions(data, headers, wide))


def _section_headers(data: bytes, wide: bool) -> list[_Header]:
    start = struct.unpack_from("<Q", data, 40)[0] if wide else struct.unpack_from("<I", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    layout = struct.Struct("<IIQQQQI" if wide else "<IIIIIII")
    return [_Header(*layout.unpack_from(data, start + i * size)) for i in range(count)]


def _functions(data: bytes, headers: list[_Header], wide: bool) -> tuple[Function, ...]:
    found: dict[str, Function] = {}
    layout = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")
    for table in (header for header in headers if header.type == _SHT_SYMTAB):
        strings = headers[table.link].offset
        for offset in range(table.offset, table.offset + table.bytes, layout.size):
            if wide:
                name, info, _, index, value, size = layout.unpack_from(data, offset)
            else:
                name, value, size, info, _, index = layout.unpack_from(data, offset)
            if info & 15 == _STT_FUNC and index != 0:
                text = _text(data, strings + name)
                found[text] = Function(text, value & ~1, size)
    return tuple(sorted(found.values(), key=lambda function: (function.address, function.name)))


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("utf-8", "replace")
