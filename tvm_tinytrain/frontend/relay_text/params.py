"""Parameter files of ``relay.save_param_dict``, and the constants of a text's metadata section.

Both hold tensors in one binary form, little-endian (Apache TVM, ``src/runtime/file_utils.cc`` and ``ndarray.h``)::

    file    u64 0xF7E58D4F05049CB7, u64 reserved, u64 count, count × (u64 length, name), u64 count, count × tensor
    tensor  u64 0xDD5E40F096B4A13F, u64 reserved, i32 device type, i32 device id, i32 ndim,
            u8 type code, u8 bits, u16 lanes, ndim × i64 extent, i64 bytes, data in row-major order
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

import numpy as np

from tvm_tinytrain.errors import DTypeError, ImportModelError

LIST_MAGIC = 0xF7E58D4F05049CB7
TENSOR_MAGIC = 0xDD5E40F096B4A13F
_DTYPES = {(0, b): f"int{b}" for b in (8, 16, 32, 64)} | {(1, b): f"uint{b}" for b in (8, 16, 32, 64)}
_DTYPES |= {(2, b): f"float{b}" for b in (16, 32, 64)} | {(1, 1): "bool", (6, 8): "bool"}
_HINT = "write the file with relay.save_param_dict, and copy it in binary mode"


def read_params(data: bytes) -> dict[str, np.ndarray]:
    """All tensors of a parameter file by name."""
    reader = _Reader(data, "parameter file")
    reader.magic(LIST_MAGIC)
    names = [reader.text() for _ in range(reader.count("number of names"))]
    count = reader.count("number of tensors")
    if count != len(names):
        raise reader.error(f"{count} tensors for {len(names)} names", "as many tensors as names")
    return {name: reader.tensor() for name in names}


def read_constants(section: str, first_line: int) -> list[np.ndarray]:
    """The tensors of ``meta[relay.Constant]`` in a metadata section, ``section`` beginning on line ``first_line``."""
    try:
        graph = json.loads(section)
        nodes = graph["nodes"]
        root = nodes[int(graph["root"])]
        entries = dict(zip(root["keys"], root["data"], strict=True))
        if "relay.Constant" not in entries:
            return []
        constants = [nodes[i] for i in nodes[entries["relay.Constant"]].get("data", [])]
        blobs = [graph["b64ndarrays"][int(node["attrs"]["data"])] for node in constants]
        return [_Reader(base64.b64decode(b, validate=True), "metadata section").tensor() for b in blobs]
    except json.JSONDecodeError as error:
        at = f"{first_line + error.lineno - 1}:{error.colno}"
        raise ImportModelError(
            "relay text",
            f"{at} metadata section",
            error.msg,
            "JSON as TVM saved it",
            "do not edit the section",
        ) from error
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error) as error:
        raise ImportModelError(
            "relay text",
            f"{first_line}:1 metadata section",
            f"{type(error).__name__}: {error}",
            "a Map of Arrays of relay.Constant, with b64ndarrays",
            "print the module with mod.astext(show_meta_data=True)",
        ) from error


class _Reader:
    def __init__(self, data: bytes, thing: str) -> None:
        self.data, self.thing, self.offset = data, thing, 0

    def error(self, found: str, allowed: str) -> ImportModelError:
        return ImportModelError("relay text", f"{self.thing} at byte {self.offset}", found, allowed, _HINT)

    def take(self, size: int) -> bytes:
        if size < 0 or self.offset + size > len(self.data):
            raise self.error(f"{len(self.data) - self.offset} bytes", f"{size} more bytes")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def magic(self, expected: int) -> None:
        if (
            len(self.data) - self.offset < 8
            or struct.unpack_from("<Q", self.data, self.offset)[0] != expected
        ):
            found = self.data[self.offset : self.offset + 8].hex(" ") or "nothing"
            raise self.error(f"bytes {found}", f"the magic number 0x{expected:X}")
        self.take(16)  # and what is reserved

    def count(self, what: str) -> int:
        (count,) = self.unpack("Q")
        if count > len(self.data) // 8:
            raise self.error(f"{what} {count}", "not more than the file can hold")
        return int(count)

    def text(self) -> str:
        (length,) = self.unpack("Q")
        return self.take(length).decode("utf-8", "replace")

    def tensor(self) -> np.ndarray:
        self.magic(TENSOR_MAGIC)
        _device_type, _device_id, ndim, code, bits, lanes = self.unpack("iiiBBH")
        if (code, bits) not in _DTYPES or lanes != 1:
            raise DTypeError(
                "relay text",
                f"{self.thing} at byte {self.offset}",
                f"type code {code}, {bits} bits, {lanes} lanes",
                "int, uint, float or bool",
                "convert the parameters to float32",
            )
        if not 0 <= ndim <= 32:
            raise self.error(f"{ndim} dimensions", "0 to 32")
        shape = self.unpack(f"{ndim}q")
        dtype = np.dtype(_DTYPES[code, bits])
        (size,) = self.unpack("q")
        expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size != expected or any(extent < 0 for extent in shape):
            raise self.error(f"{size} bytes for {dtype} {shape}", f"{expected} bytes")
        return np.frombuffer(self.take(size), dtype.newbyteorder("<")).reshape(shape).astype(dtype)
