"""Two builds in two processes, with different hashing of strings and sets, give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

from tests.emit.libraries import library
from tvm_tinytrain.config import Adam
from tvm_tinytrain.plan import UpdatePlan


def digests() -> dict[str, object]:
    """Each file's digest and the order of the files, of two libraries that this process builds."""
    plan = UpdatePlan.from_channels({0: (1,), 2: (0,)})
    found: dict[str, object] = {}
    for key, module in {
        "plain": library(),
        "accumulated": library(optimizer=Adam(), accumulate=True, update=plan),
    }.items():
        found |= {
            f"{key}/{name}": hashlib.sha256(content).hexdigest() for name, content in module.files.items()
        }
        found[f"{key}/order"] = list(module.files)
    return found


def test_two_processes() -> None:
    """This process, whatever seeds its hashes, and one whose seed is another."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "4321" else "4321"
    script = "import json; from tests.emit.test_reproducible import digests; print(json.dumps(digests()))"
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
    )
    assert json.loads(other.stdout) == digests()
    assert len(digests()) > 12


def test_two_builds_in_this_process() -> None:
    builds = []
    for _ in range(2):
        library.cache_clear()
        builds.append(library().files)
    assert builds[0] == builds[1]
