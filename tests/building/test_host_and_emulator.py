"""One library on this machine and on an emulated Cortex-M7: predictions, losses and parameters agree."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emit.libraries import M7, example, library
from tvm_tinytrain.config import SGD, Optimizer
from tvm_tinytrain.micro import Session
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.plan import UpdatePlan

OPTIMIZER: Optimizer = SGD(0.05, 0.9, 0.01)
PLAN = UpdatePlan.from_channels({0: (0, 1), 1: (1,), 3: (0, 1, 2)})


@pytest.mark.emulator
@pytest.mark.host_compiler
def test_three_steps() -> None:
    module = library(M7, optimizer=OPTIMIZER, update=PLAN)
    kept = [t["name"] for t in module.metadata["tensors"] if t["role"] in ("param", "state")]
    x = example().numpy()
    with InProcess(module) as here, Session(module) as board:
        assert set(board.entries) == set(module.metadata["entries"])
        np.testing.assert_allclose(board.predict(x), here.predict(x), rtol=0, atol=1e-6)
        for step in range(3):
            sample = x * np.float32(1 - step / 4)
            assert board.step(sample, step) == pytest.approx(here.step(sample, step), rel=1e-6)
        for name in kept:
            np.testing.assert_allclose(board.read(name), here.read(name), rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(board.predict(x), here.predict(x), rtol=0, atol=1e-6)
        memory = board.memory()
        assert memory["arena_high_water_bytes"] <= module.metadata["memory"]["arena_bytes"]
        assert memory["stack_bytes"] < memory["stack_limit_bytes"]
