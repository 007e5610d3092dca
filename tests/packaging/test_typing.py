"""The package is typed for who uses it: a type checker knows every public name, and no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tvm_tinytrain

ROOT = Path(__file__).parents[2]
CONFIG = """[mypy]
strict = true
mypy_path = {tree}
follow_imports = silent

[mypy-numpy.*,onnx.*,torch.*,tvm.*,tvm_ffi.*]
follow_imports = skip
"""


@pytest.fixture
def mypy(tmp_path: Path) -> list[str]:
    """Command that checks files against the package as it is installed. Of others' packages nothing is read: that takes a minute."""
    pytest.importorskip("mypy", reason="mypy is missing: pip install 'tvm_tinytrain[dev]'")
    tree = tmp_path / "tree"
    tree.mkdir()
    package = tree / "tvm_tinytrain"
    package.mkdir()
    parts = [ROOT / part for part in ("passes", "schedules", "targets")]
    for path in [*(ROOT / "tvm_tinytrain").iterdir(), *parts]:
        (package / path.name).symlink_to(path)
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG.format(tree=tree))
    return [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(config),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]


def test_a_type_checker_knows_every_public_name_and_no_other(mypy: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    mistakes = ["tt.Adamm()", "tt.load(5)", 'tt.load("network.tar").exprot("x.tar")']
    names = [f"reveal_type(tt.{name})" for name in tvm_tinytrain.__all__]
    program.write_text("\n".join(["import tvm_tinytrain as tt", *mistakes, *names]))
    result = subprocess.run([*mypy, str(program)], capture_output=True, text=True, timeout=300)
    said = dict(re.findall(r"program\.py:(\d+): (?:error|note): (.*)", result.stdout))
    lines = [said.get(str(number), "nothing") for number in range(2, 2 + len(mistakes) + len(names))]
    misspelt, wrong_type, no_method = lines[: len(mistakes)]
    assert 'has no attribute "Adamm"' in misspelt
    assert 'Argument 1 to "load" has incompatible type "int"' in wrong_type
    assert 'has no attribute "exprot"' in no_method
    types = dict(zip(tvm_tinytrain.__all__, lines[len(mistakes) :], strict=True))
    unknown = {n: t for n, t in types.items() if not t.startswith("Revealed type") or t.endswith('is "Any"')}
    assert unknown == {}, result.stdout + result.stderr
