"""The tree: sizes of files, nothing that belongs to one machine, commands of the documents that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = {".py", ".c", ".h", ".S", ".cmake", ".sh"}
MAX_LINES = 400
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def tracked_files() -> list[Path]:
    """Return the project's own files: those that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Return path and content of every tracked text file."""
    contents = ((path, path.read_bytes()) for path in tracked_files())
    return [(path, data.decode("utf-8")) for path, data in contents if b"\0" not in data[:4096]]


def shell_lines(document: Path) -> list[str]:
    """Return the commands that a document shows: lines of its sh blocks, and inline code."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    lines = [
        line.split(" #")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()
    ]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", prose)


def test_no_code_file_is_too_long() -> None:
    code = [path for path in tracked_files() if path.suffix in CODE and "golden" not in path.parts]
    long = {
        str(path.relative_to(ROOT)): count
        for path in code
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}, f"over {MAX_LINES} lines"


def test_no_path_of_a_working_machine() -> None:
    """A path below somebody's home, or of this very checkout, would be wrong for everybody else."""
    patterns = [
        r"(?<![\w.])/(?:home|Users)/\w",
        r"(?<![\w./])/root/[\w.]",
        re.escape(f"{Path.home()}/") + r"[\w.]",
    ]
    for place in (ROOT, *ROOT.parents):
        if len(place.parts) > 2:
            patterns.append(re.escape(str(place)) + r"\b")
    pattern = re.compile("|".join(patterns))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path, text in texts()
        if path != Path(__file__)
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    unknown = []
    for line in shell_lines(document):
        line = re.sub(r"(^|&&\s*|\bsudo\s+)\.venv/bin/", r"\1", line)
        for words in (part.split() for part in re.split(r"&&|;|\|", line)):
            match words:
                case ["make", *goals]:
                    names = [goal for goal in goals if not goal.startswith("-") and "=" not in goal]
                    unknown += [
                        f"make {name}"
                        for name in names
                        if re.match(r"[a-z-]+$", name) and name not in targets
                    ]
                case [("python" | "python3"), "-m", module, *_] if module.startswith(
                    ("benchmarks", "examples")
                ):
                    if not (ROOT / f"{module.replace('.', '/')}.py").exists():
                        unknown.append(f"python -m {module}")
                case [("python" | "python3"), script, *_] if script.endswith(".py"):
                    if not (ROOT / script).exists():
                        unknown.append(f"python {script}")
                case ["tinytrain", *_]:
                    assert "tinytrain" in scripts
    assert unknown == []


def test_linked_files_of_documents_exist() -> None:
    broken = [
        f"{document.name}: {link}"
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
        if "://" not in link and not (document.parent / link).exists()
    ]
    assert broken == []


def test_make_help_lists_the_two_commands() -> None:
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"make demo\s+\S", shown)
    assert re.search(r"make test\s+\S", shown)


def test_pins_are_exact() -> None:
    """Every line of constraints.txt pins one version, and pyproject's exact pins are the same."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    exact = dict(spec.split("==") for spec in project["dependencies"] if "==" in spec)
    assert {name: pins.get(name) for name in exact} == exact
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(spec for specs in extras for spec in specs)]
    names = {re.match(r"[\w-]+", spec)[0].lower().replace("-", "_") for spec in wanted}
    assert names <= {name.lower().replace("-", "_") for name in pins}


def test_python_is_new_enough() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11"
    assert sys.version_info >= (3, 11)
