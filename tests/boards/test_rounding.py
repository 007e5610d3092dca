"""Host and Cortex-M7 agree to the last bit on the loops that kernels are made of, by the targets' own flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import hand_written
from tvm_tinytrain.micro import Session

KERNELS = b"""
#include <math.h>
/* x: 690 floats, y: 46 results, in the tensor "bytes". Each loop mixes products and sums in another way. */
static int kernels(void *arena) {
  float *x = (float *)((unsigned char *)arena + offsetof(state, bytes));
  float *y = x + 690;
  float sum = 0.0f, four[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  double wide = 0.0;
  for (int i = 0; i < 300; i++) {
    sum += x[i] * x[300 + i];
    wide += (double)x[i] * x[300 + i];
  }
  for (int i = 0; i < 300; i++) {
    for (int k = 0; k < 4; k++) {
      four[k] += x[i] * x[i + 90 * k];
    }
  }
  for (int i = 0; i < 40; i++) {
    float a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3], m = 0.9f * a + 0.1f * b;
    y[i] = a * b - c * d + sqrtf(a * a + b * b) / (1.0f + c * c) - 0.001f * m / (sqrtf(d * d) + 1e-8f);
  }
  y[40] = sum;
  y[41] = (float)wide;
  for (int k = 0; k < 4; k++) {
    y[42 + k] = four[k];
  }
  return 0;
}
"""


def library() -> Any:
    source = hand_written().files["tt_fake.c"]
    source = source.replace(b'{"fail", fail},', b'{"fail", fail}, {"kernels", kernels},')
    source = source.replace(
        b"static const float initial_weight", KERNELS + b"static const float initial_weight"
    )
    return hand_written(**{"tt_fake.c": source})


@pytest.mark.emulator
def test_the_last_bit(tmp_path: Path) -> None:
    content = np.zeros(750, np.float32)
    content[:690] = np.random.default_rng(0).normal(size=690)
    results = []
    for board in ("host", "mps2-an500"):
        with Session(library(), board, tmp_path / board) as session:
            session.write("bytes", content.view(np.uint8).reshape(3, 10, 100))
            session.call("kernels")
            results.append(session.read("bytes").reshape(-1)[2760 : 2760 + 184].copy().view(np.float32))
    assert np.isfinite(results[0]).all() and len(set(results[0].tolist())) == 46
    assert results[0].tobytes() == results[1].tobytes()
