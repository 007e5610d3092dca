"""Options and fixtures of all tests: skipping by need, golden files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.needs import MARKED, missing


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tvm_tinytrain")
    group.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")
    group.addoption(
        "--require-tools", action="store_true", help="a missing tool fails a test instead of skipping it"
    )
    group.addoption("--board", metavar="NAME", help="real board for tests marked `board`")
    group.addoption("--port", metavar="DEVICE", help="serial device of --board, e.g. /dev/ttyACM0")


def needed_tools(item: pytest.Item) -> list[str]:
    """Return the names in tests/needs.py of what the markers of `item` ask for."""
    names = [tool for marker, tools in MARKED.items() if item.get_closest_marker(marker) for tool in tools]
    return names + [tool for marker in item.iter_markers("needs") for tool in marker.args]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("board") and not item.config.getoption("--board"):
        pytest.skip("no board: connect one and pass --board NAME --port DEVICE")
    complaints = missing(needed_tools(item))
    if complaints and item.config.getoption("--require-tools"):
        pytest.fail("; ".join(complaints), pytrace=False)
    if complaints:
        pytest.skip("; ".join(complaints))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let ``-k`` find a test of a bundle (a parameter ``cases``) by the name of each of its cases."""
    for item in items:
        cases = getattr(item, "callspec", None) and item.callspec.params.get("cases", ())
        item.extra_keyword_matches.update(case.name for case in cases or ())


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return ``check(name, text)``: `text` must equal the file ``golden/<name>`` beside the test's own file.

    ``pytest --update-golden`` writes the file instead; its diff is then read in review.
    """
    folder = request.path.parent / "golden"
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path: Path = folder / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path.name}: no golden file; make it with pytest --update-golden", pytrace=False)
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            rows = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=2
            )
            head = "\n".join(list(rows)[:60])
            pytest.fail(
                f"{name} differs from its golden file (--update-golden rewrites it)\n{head}", pytrace=False
            )

    return check
