"""What all benchmarks share: options, a report of rows and checks, tables for people, the exit code.

    def main(argv: Sequence[str] | None = None) -> int:
        options = parse(parser("kernels", __doc__), argv)
        report = Report(options)
        report.rows.append({"kernel": "conv 1x1", "instructions": 123})
        report.at_most("1x1 forward", 1.75, 1.64, "instructions per MAC")
        print_table("Kernels", ["kernel", "instructions"], [["conv 1x1", 123]])
        return report.finish()

A check that fails is kept and makes the exit code 1. So does an exception inside `Report.attempt`, and the
checks after it still run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("tvm_tinytrain", "apache-tvm", "torch", "numpy")


@dataclass(frozen=True)
class Check:
    """What was asked of a benchmark and what it got, both readable without the code."""

    name: str
    asked: str
    got: str
    ok: bool


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks.<name>`, with --json; the first paragraph describes it."""
    text = (description or "").strip().split("\n\n")[0]
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text)
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="write options, versions, rows and checks here"
    )
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and print every resolved option, so that a log reproduces the run."""
    options = made.parse_args(argv)
    shown = " ".join(f"{key}={value}" for key, value in sorted(vars(options).items()) if value is not None)
    print(f"{made.prog} {shown}", file=sys.stderr)
    return options


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python, the processor's architecture and the packages, without importing them."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass
class Report:
    """Raw figures and checks of one run; `finish` prints the checks, writes the JSON file and gives the
    exit code.

    rows: one flat mapping for each figure or group of figures, keys with their unit ("peak_bytes").
    versions: add tools that matter here, e.g. an emulator's.
    """

    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)

    def check(self, name: str, asked: object, got: object, ok: bool) -> bool:
        """Record a check and return whether it holds."""
        self.checks.append(Check(name, str(asked), str(got), bool(ok)))
        return bool(ok)

    def at_most(self, name: str, limit: float, got: float, unit: str = "") -> bool:
        """Check got <= limit."""
        return self.check(
            name, f"<= {number(limit)} {unit}".strip(), f"{number(got)} {unit}".strip(), got <= limit
        )

    def at_least(self, name: str, limit: float, got: float, unit: str = "") -> bool:
        """Check got >= limit."""
        return self.check(
            name, f">= {number(limit)} {unit}".strip(), f"{number(got)} {unit}".strip(), got >= limit
        )

    def equal(self, name: str, asked: object, got: object) -> bool:
        """Check equality."""
        return self.check(name, asked, got, asked == got)

    @contextmanager
    def attempt(self, name: str, asked: object = "runs to the end") -> Iterator[None]:
        """Turn an exception of the block into a failed check with the exception's text, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(name, asked, f"{type(error).__name__}: {error}", False)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: options, versions, rows, checks."""
        options = {key: _plain(value) for key, value in vars(self.options).items() if key != "json"}
        return {
            "options": options,
            "versions": self.versions,
            "rows": self.rows,
            "checks": [asdict(check) for check in self.checks],
        }

    def save(self) -> None:
        """Write the JSON file if one was asked for, whole or not at all; long runs call it between rows."""
        path: Path | None = self.options.json
        if path is None:
            return
        text = json.dumps(self.as_dict(), indent=1, sort_keys=False, allow_nan=False, default=_plain)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)

    def finish(self) -> int:
        """Print the checks, save, and return 0 if all hold, else 1. No check at all is a failure too."""
        print_table(
            "Checks",
            ["", "check", "asked", "got"],
            [["ok" if check.ok else "FAILED", check.name, check.asked, check.got] for check in self.checks],
        )
        self.save()
        failed = [check.name for check in self.checks if not check.ok]
        print(f"{len(self.checks) - len(failed)} of {len(self.checks)} checks hold")
        return 1 if failed or not self.checks else 0


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are aligned to the right. Piped output is never cut or wrapped."""
    table = Table(title=title, title_justify="left", title_style="bold")
    cells = [[number(value) for value in row] for row in rows]
    for position, column in enumerate(columns):
        values = [row[position] for row in rows]
        numeric = bool(values) and all(isinstance(v, int | float) or v in (None, "") for v in values)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(
            highlight=False, markup=False, width=sum(_widths(columns, cells)) + 3 * len(columns) + 4
        )
    console.print(table)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]


def number(value: object) -> str:
    """Text of a cell: integers with thousands separators, floats with 4 digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _plain(value: object) -> object:
    """What JSON can hold of an option or a figure: paths and fractions as text, numpy scalars as numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [_plain(item) for item in items]
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
