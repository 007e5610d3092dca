"""The phase `lower_graph`, then scheduling: the module computes what it computed before, parameters updated in place included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from torch import nn

from tests.passes.helpers import Machine, derived, label
from tests.passes.networks import Mixed, Twice, sample, seeded
from tvm_tinytrain.config import SGD
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.lower_graph import lower_graph
from tvm_tinytrain.passes.prune_backward import PruneBackward
from tvm_tinytrain.passes.reuse_dead_operands import ReuseDeadOperands
from tvm_tinytrain.passes.split_weights import SplitWeights
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.schedules import RULES, ScheduleKernels
from tvm_tinytrain.targets.target import parse_target

TARGET = parse_target("c -mcpu=cortex-m7").to_tvm()


@pytest.mark.parametrize("make", [Mixed, Twice], ids=lambda m: m.__name__)
def test_two_steps_and_a_prediction(make: Callable[[], nn.Module]) -> None:
    plan = UpdatePlan.from_channels({0: (0, 2), 1: (1, 3), 2: (0, 1)})
    before = SplitWeights()(PruneBackward(plan)(derived(seeded(make), sample(*make.shape))))
    before = FuseUpdate(SGD(0.1, 0.9))(before)
    phase = [*lower_graph(), ScheduleKernels(TARGET, RULES), ReuseDeadOperands()]
    machines = [Machine(before), Machine(tvm.ir.transform.Sequential(phase)(before))]
    for seed in (3, 4):
        x = sample(*make.shape, seed=seed).numpy()
        losses = [m.run("step", x, label(seed % 3))[0] for m in machines]
        outputs = [m.run("predict", x)[0] for m in machines]
        np.testing.assert_allclose(*losses, rtol=2e-6)
        np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    for name in machines[0].tensors:
        np.testing.assert_allclose(machines[0].value(name), machines[1].value(name), rtol=1e-5, atol=1e-6)
