"""Errors raised inside a pass keep their type: TVM would hand them on as RuntimeError, with nothing but their text."""

from __future__ import annotations

import re
from typing import Any

import tvm_ffi

from tvm_tinytrain.errors import TinyTrainError

_TEXT = re.compile(
    r"(?P<stage>.*?): (?P<thing>.*): found (?P<found>.*); allowed (?P<allowed>.*?); (?P<hint>.*)", re.DOTALL
)


def register_errors() -> None:
    """Tells TVM's foreign function interface how each TinyTrainError is made again from its text."""
    classes: list[type[TinyTrainError]] = [TinyTrainError, *TinyTrainError.__subclasses__()]
    for cls in classes:
        name = f"tvm_tinytrain.{cls.__name__}"
        tvm_ffi.register_error(name, cls)
        tvm_ffi.register_error(name, _reader(cls))


def _reader(cls: type[TinyTrainError]) -> type:
    """A type that TVM calls with the text, and that answers with a `cls`."""

    def read(_: type, text: str) -> Any:
        match = _TEXT.fullmatch(text)
        return cls(**match.groupdict()) if match else cls("pass", "error", text, "none", "report this")

    return type(f"{cls.__name__}Reader", (), {"__new__": read})
