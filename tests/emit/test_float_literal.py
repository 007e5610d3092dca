"""Literals read back to the same bits: by a Python reader for any value, by GCC for the awkward ones."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.emit.libraries import STRICT
from tvm_tinytrain.emit.c_expr import float_literal

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FLOAT32)
@example(-0.0)
@example(1e-45)
@example(float(np.finfo(np.float32).max))
def test_round_trip(value: float) -> None:
    text = float_literal(value)
    assert text.endswith("f") and ("." in text or "e" in text), "an integer with suffix f is no C"
    assert np.float32(text[:-1]).tobytes() == np.float32(value).tobytes()


def test_values_without_digits() -> None:
    assert (float_literal(math.inf), float_literal(-math.inf), float_literal(math.nan)) == (
        "INFINITY",
        "(-INFINITY)",
        "NAN",
    )


@pytest.mark.host_compiler
def test_gcc_reads_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32)
    edges = [
        0,
        1,
        2,
        0x007FFFFF,
        0x00800000,
        0x7F7FFFFF,
        0x80000000,
        0x80000001,
        0x3F800000,
        0x3F7FFFFF,
        0x4B800001,
    ]
    values = np.concatenate([bits, np.array(edges, np.uint32)]).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.array([np.inf, -np.inf], np.float32)])
    rows = ",\n".join(float_literal(float(v)) for v in values)
    source = (
        f"#include <math.h>\n#include <stdio.h>\nstatic const float values[] = {{\n{rows}}};\n"
        "int main(void) { return fwrite(values, sizeof values, 1, stdout) == 1 ? 0 : 1; }\n"
    )
    (tmp_path / "literals.c").write_text(source)
    subprocess.run(["gcc", *STRICT, "-o", "literals", "literals.c"], cwd=tmp_path, check=True)
    out = subprocess.run([str(tmp_path / "literals")], check=True, capture_output=True).stdout
    assert out == values.tobytes()
