"""The wheel and the editable install: what they carry, and under which names it is imported.

Both are made from a copy of the sources to which a sub-package, a C file and a tuned record were added, so
that the answer holds for what comes later too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "tvm_tinytrain",
    "passes",
    "schedules",
    "targets",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)
ADDED = {
    "tvm_tinytrain/newpart/__init__.py": "",
    "passes/newpart/__init__.py": "",
    "passes/newpart/deep/__init__.py": "",
    "passes/newpart/deep/module.py": "VALUE = 3",
    "targets/runtime/newpart/deep.c": "int tt_deep;\n",
    "targets/runtime/newpart/deep.h": "extern int tt_deep;\n",
    "targets/boards/newboard/map.ld": "MEMORY { }\n",
    "targets/boards/newboard/start.S": ".end\n",
    "targets/cmake/new.cmake": "set(A 1)\n",
    "schedules/records/c-cortex-m7/new.json": "{}\n",
}


def copy_sources(folder: Path) -> Path:
    """Copy what the package is built from, and add the files of ADDED."""
    folder.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for name, text in ADDED.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def build(source: Path, out: Path, hook: str) -> Path:
    """Call the build back end's `hook` in `source` and return the wheel that it wrote into `out`."""
    out.mkdir()
    call = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=source, check=True, capture_output=True, text=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def python(code: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` with `site` as its site folder; beside it only this environment's packages."""
    paths = f"site.addsitedir({str(site)!r}); sys.path.append({sysconfig.get_path('purelib')!r})"
    command = [sys.executable, "-S", "-c", f"import site, sys; {paths}\n{code}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("packaging") / "source")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build(source, source.parent / "wheel", "build_wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="module")
def editable(source: Path) -> Path:
    path = copy_sources(source.parent / "editable")
    site = source.parent / "editable-site"
    with zipfile.ZipFile(build(path, source.parent / "editable-wheel", "build_editable")) as archive:
        archive.extractall(site)
    later = path / "passes" / "later"
    later.mkdir()
    (later / "__init__.py").write_text("")
    (later / "module.py").write_text("VALUE = 4")
    (path / "targets" / "later.py").write_text("VALUE = 5")
    return site


def test_wheel_carries_every_source(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    suffixes = {".py", ".c", ".h", ".S", ".s", ".ld", ".cmake", ".json"}
    expected = set()
    for top in ("tvm_tinytrain", "passes", "schedules", "targets"):
        prefix = "" if top == "tvm_tinytrain" else "tvm_tinytrain/"
        files = (path for path in (source / top).rglob("*") if path.suffix in suffixes)
        expected |= {prefix + path.relative_to(source).as_posix() for path in files}
    assert "tvm_tinytrain/targets/runtime/include/tinytrain.h" in expected
    assert sorted(expected - carried) == []
    assert not [name for name in carried if name.startswith(("passes", "schedules", "targets", "tests"))]


def test_wheel_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        top = next(name for name in archive.namelist() if name.endswith("top_level.txt"))
        assert "tinytrain = tvm_tinytrain.cli:main" in archive.read(info).decode()
        assert archive.read(top).decode().split() == ["tvm_tinytrain"]
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


@pytest.mark.parametrize("kind", ["installed", "editable"])
@pytest.mark.parametrize("name", ["passes", "schedules", "targets"])
def test_bare_name_fails(kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    site = request.getfixturevalue(kind)
    result = python(f"import {name}", site, tmp_path)
    assert result.returncode != 0
    assert f"ModuleNotFoundError: No module named '{name}'" in result.stderr
    good = python(f"import tvm_tinytrain.{name} as m; print(m.__name__, m.__file__)", site, tmp_path)
    assert good.stdout.startswith(f"tvm_tinytrain.{name} {site.parent.parent}"), good.stderr


@pytest.mark.parametrize("name", ["passes", "schedules", "targets"])
def test_bare_name_fails_in_the_checkout(name: str) -> None:
    """At the top of the repository the folder itself could be imported; its guard says what to write."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert f"ImportError: import tvm_tinytrain.{name} instead of {name}" in result.stderr


def test_wheel_imports_new_modules(installed: Path, tmp_path: Path) -> None:
    result = python(
        "from tvm_tinytrain.passes.newpart.deep.module import VALUE; print(VALUE)", installed, tmp_path
    )
    assert result.stdout.strip() == "3", result.stderr


def test_editable_install_finds_later_modules(editable: Path, tmp_path: Path) -> None:
    code = "import tvm_tinytrain.passes.later.module as a, tvm_tinytrain.targets.later as b"
    result = python(f"{code}; print(a.VALUE, b.VALUE)", editable, tmp_path)
    assert result.stdout.split() == ["4", "5"], result.stderr


def test_resources_are_found_by_importlib(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files\n"
        "print(files('tvm_tinytrain.targets').joinpath('runtime/include/tinytrain.h').is_file())\n"
        "print(files('tvm_tinytrain.schedules').joinpath('records/c-cortex-m7/new.json').read_text())"
    )
    result = python(code, installed, tmp_path)
    assert result.stdout.split() == ["True", "{}"], result.stderr
