"""Relay text to tokens. Comments vanish here; the metadata section stays one token of JSON.

The grammar is that of the tokenizer in Apache TVM 0.7 to 0.19, ``src/relay/parser/tokenizer.h``; more lenient in one
point: names may hold the dots and colons that TVM's own printer writes and its parser refuses
(``%features.0.weight``, ``%aten::relu_0``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from tvm_tinytrain.frontend.relay_text.syntax import Position, syntax_error


class Kind(Enum):
    """What a token is; the value is how errors call it."""

    VERSION = "version header"
    METADATA = "metadata section"
    META = "metadata reference"
    LOCAL = "variable"
    TEMPORARY = "temporary"
    GLOBAL = "global function"
    NUMBER = "number"
    STRING = "string"
    NAME = "name"
    INDEX = "tuple index"
    SYMBOL = "symbol"
    END = "end of text"


@dataclass(frozen=True)
class Token:
    """``text`` is without the sigil: ``x`` of ``%x``, ``0`` of ``.0``; of a string it is the content."""

    kind: Kind
    text: str
    at: Position

    def __str__(self) -> str:
        return self.kind.value if self.kind is Kind.END else f"{self.kind.value} {self.text!r}"


_SPACE = re.compile(r"[ \t\r\n]+")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_TOKEN = re.compile(
    r"""
      \#\[\s*version\s*=\s*"(?P<version>[^"]*)"\s*\]
    | (?P<metadata>\#\[\s*metadata\s*\])
    | meta\[(?P<meta>[^\]\n]*\]\[\s*\d+\s*)\]
    | %(?P<temporary>\d+)(?!\w|/\w)
    | %(?P<local>\w+(?:(?:::|[./])\w+|:\d+)*)
    | @(?P<global>[A-Za-z_]\w*(?:(?:::|[./])\w+)*)
    | (?P<number>-*(?:(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?(?:[fi]\d*)?(?!\w))|(?:(?:inf|nan)f\d*(?!\w))))
    | "(?P<string>(?:[^"\\\n]|\\.)*)"
    | (?P<name>[A-Za-z_]\w*(?:/\w+)*(?:\.[A-Za-z_]\w*)*)
    | \.(?P<index>\d+)
    | (?P<symbol>->|=>|<=|>=|==|!=|[-+*/<>=(){}\[\],;:?!.])
    """,
    re.VERBOSE,
)
_KINDS = {kind.name.lower(): kind for kind in Kind}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def tokenize(text: str) -> list[Token]:
    """All tokens of ``text``, an END token last; an ImportModelError names the first character that fits nothing."""
    tokens: list[Token] = []
    offset, line, line_start = 0, 1, 0
    while True:
        end = _skip_blank(text, offset, Position(line, offset - line_start + 1))
        newlines = text.count("\n", offset, end)
        if newlines:
            line, line_start = line + newlines, text.rindex("\n", offset, end) + 1
        offset, at = end, Position(line, end - line_start + 1)
        if offset == len(text):
            return [*tokens, Token(Kind.END, "", at)]
        match = _TOKEN.match(text, offset)
        if match is None:
            raise _unknown(text, offset, at)
        group = str(match.lastgroup)
        if group == "metadata":
            tokens.append(Token(Kind.METADATA, text[match.end() :], at))
            return [*tokens, Token(Kind.END, "", at)]
        content = match.group(group)
        if group == "string":
            content = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), content)
        tokens.append(Token(_KINDS[group], content, at))
        offset = match.end()


def _skip_blank(text: str, offset: int, at: Position) -> int:
    """The offset behind white space and comments; block comments nest."""
    while True:
        space = _SPACE.match(text, offset)
        if space:
            offset = space.end()
        elif text.startswith("//", offset):
            newline = text.find("\n", offset)
            offset = len(text) if newline < 0 else newline
        elif text.startswith("/*", offset):
            depth, start = 1, offset
            offset += 2
            while depth:
                edge = _COMMENT_EDGE.search(text, offset)
                if edge is None:
                    line_start = text.rfind("\n", 0, start) + 1
                    begin = Position(text.count("\n", 0, start) + 1, start - line_start + 1)
                    raise syntax_error(
                        begin, "comment", "/* without */", "a closed comment", "close it with */"
                    )
                depth += 1 if edge[0] == "/*" else -1
                offset = edge.end()
        else:
            return offset


def _unknown(text: str, offset: int, at: Position) -> Exception:
    if text[offset] == '"':
        return syntax_error(
            at, "string", "no closing quote", 'text between two "', "close the string on its line"
        )
    if text[offset] == "#":
        found = text[offset:].split("\n", 1)[0]
        return syntax_error(
            at,
            "section",
            found,
            '#[version = "0.0.5"] and #[metadata]',
            "print the module with TVM 0.7 to 0.19",
        )
    hint = "print the module with mod.astext(), and give the file as it was printed"
    return syntax_error(at, "character", repr(text[offset]), "Relay's tokens", hint)
