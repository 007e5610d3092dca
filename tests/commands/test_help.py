"""``--help``: every option with a default says it, and names what it takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tvm_tinytrain as tt
from tvm_tinytrain.cli import _parser, main
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.fewshot.methods import METHODS


def commands() -> dict[str, argparse.ArgumentParser]:
    found = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def options() -> Iterator[tuple[str, argparse.Action]]:
    for command, parser in commands().items():
        for action in parser._actions:
            if action.option_strings and not isinstance(action, argparse._HelpAction):
                yield command, action


def test_every_default_is_said() -> None:
    shown = (None, False, argparse.SUPPRESS)
    silent = [
        f"{command} {action.option_strings[-1]}"
        for command, action in options()
        if action.default not in shown and "default" not in (action.help or "")
    ]
    assert not [name for name in silent if not name.endswith("--json")]


def test_the_methods_of_evaluate_are_named() -> None:
    told = next(a.help or "" for c, a in options() if c == "evaluate" and "--methods" in a.option_strings)
    assert all(f" {name}" in told for name in METHODS)


@pytest.mark.parametrize("optimizer", [tt.SGD(), tt.Adam(), tt.AdamW()])
def test_a_rate_that_is_not_given_is_the_optimizers_own(
    optimizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def build(*_: object, **given: object) -> None:
        made.append(given["optimizer"])
        raise PlanError("test", "build", "enough", "nothing", "none")

    monkeypatch.setattr(sys.modules["tvm_tinytrain.build"], "build", build)
    words = [
        "compile",
        "n.pt2",
        "-o",
        str(tmp_path / "n.tar"),
        "--optimizer",
        type(optimizer).__name__.lower(),
    ]
    assert main(words) == 1 and main([*words, "--lr", "0.5"]) == 1
    assert made == [optimizer, type(optimizer)(0.5)]
    told = next(a.help or "" for c, a in options() if c == "compile" and "--lr" in a.option_strings)
    assert f"{optimizer.lr:g}" in told
