"""What a project or an export says of itself: how it is built, and what that needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import SHAPE, network
from tvm_tinytrain.micro.exports import export_project
from tvm_tinytrain.micro.project import generate_project

KINDS = ["board", "bare-metal", "zephyr", "arduino", "cmake"]


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    example = (torch.zeros(SHAPE),)
    return tt.build(network(), example_inputs=example, update=tt.LastLayer(), name="small_net")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_how_it_is_built_and_what_of(
    module: tt.TrainModule, tmp_path: Path, kind: str
) -> None:
    if kind == "board":
        generate_project(module, "mps2-an500", tmp_path)
    else:
        export_project(module, kind, tmp_path)
    told = (tmp_path / "README.md").read_text()
    assert "small_net" in told and "@" not in told
    assert ("pip install ." in told) == (kind in ("board", "cmake"))
    assert "pip install tvm_tinytrain" not in told  # it is not released
    if kind == "board":
        assert 'GeneratedProject.from_directory(".").build()' in told and "arm-none-eabi-gcc" in told
