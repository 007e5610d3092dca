"""Two builds in two processes, with different hashing of strings and sets, give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

SCRIPT = """
import hashlib, json, sys
from tests.emit.libraries import library
from tvm_tinytrain.config import Adam
from tvm_tinytrain.plan import UpdatePlan
found = {}
for key, module in {
    "plain": library(),
    "accumulated": library(optimizer=Adam(), accumulate=True, update=UpdatePlan.from_channels({0: (1,), 2: (0,)})),
}.items():
    found |= {f"{key}/{name}": hashlib.sha256(content).hexdigest() for name, content in module.files.items()}
    found[f"{key}/order"] = list(module.files)
json.dump(found, sys.stdout)
"""


def test_two_processes() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE
        )
        for seed in ("1", "4321")
    ]
    first, second = (json.loads(run.communicate()[0]) for run in runs)
    assert first == second
    assert len(first) > 12


def test_two_builds_in_this_process() -> None:
    from tests.emit.libraries import library

    digests = []
    for _ in range(2):
        library.cache_clear()
        digests.append({n: hashlib.sha256(c).hexdigest() for n, c in library().files.items()})
    assert digests[0] == digests[1]
