"""Import of int8 backbones (structure as JSON, arrays as NPZ) into the fused float32 modules.

Such a pair holds one entry per convolution with `weight` (int8, OIHW), `bias` (int32), `w_scales` (float32,
one per output channel), `x_scale`, and the quantisation of its output, `y_scale` and `y_zero`. Batch norm is
folded in. In real numbers w = weight · w_scales and b = bias · x_scale · w_scales: exact up to float32
rounding.

Two things are not carried over. The output range of each convolution is a calibration of int8, not a part of
the network; a layer with an activation gets ReLU6, which contains that range. A bias of −2³¹ marks a
saturated channel: its true bias was further down, and its weights are about 0. The formula gives it a
negative bias, so behind ReLU6 it is dead, in the forward pass and in the gradient, as it was in the int8
network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec, ConvUnit

_SATURATED = np.iinfo(np.int32).min
_STAGE = "int8 import"


def load_int8_backbone(structure: str | Path, arrays: str | Path, *, classifier: bool = False) -> Backbone:
    """Read a pair of files into a fused backbone in eval mode.

    Parameters
    ----------
    structure, arrays
        Paths of the JSON and the NPZ file.
    classifier
        Keep the classifier of the file as the linear head; without it the backbone gives pooled features.

    Returns
    -------
    Backbone
        Convolutions with bias, ReLU6, no batch norm; input float32 [N, 3, H, W] in [-1, 1]. Its structure is
        what the file says, so a file without a feature mix gives a backbone without one.

    Raises
    ------
    ImportModelError
        A file is missing or unreadable, an entry is missing, or the network is not one of inverted
        bottlenecks.
    """
    tree, values = _read(Path(structure), Path(arrays))
    spec = _backbone_spec(tree, Path(structure).stem)
    head = tree.get("classifier") if classifier else None
    if classifier and head is None:
        raise ImportModelError(
            _STAGE, "classifier", "none in the file", "a classifier", "pass classifier=False"
        )
    model = Backbone(spec, num_classes=None if head is None else head["out_channel"], fused=True)
    for (name, entry), unit in zip(_convolutions(tree), model.conv_units(), strict=True):
        _fill_convolution(name, entry, values, unit)
    if head is not None and model.head is not None:
        weight, bias = _real("classifier", head, values)
        _assign("classifier", model.head, weight.reshape(weight.shape[:2]), bias)
    return model.eval()


def _read(structure: Path, arrays: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for path in (structure, arrays):
        if not path.is_file():
            raise ImportModelError(
                _STAGE, str(path), "no such file", "a .json and a .npz file", "check the two paths"
            )
    try:
        tree = json.loads(structure.read_text(encoding="utf-8"))
    except ValueError as error:
        where = f"{structure}:{getattr(error, 'lineno', 1)}:{getattr(error, 'colno', 1)}"
        raise ImportModelError(_STAGE, where, error, "JSON text", "check the file") from error
    try:
        with np.load(arrays, allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files}
    except (ValueError, OSError) as error:
        raise ImportModelError(
            _STAGE, str(arrays), error, "an .npz without pickle", "check the file"
        ) from error
    if not isinstance(tree, dict) or not tree.get("blocks") or not tree.get("first_conv"):
        raise ImportModelError(
            _STAGE, str(structure), "no first_conv or no blocks", "an object with both", "check the file"
        )
    return tree, values


def _convolutions(tree: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and entry of every convolution, in the order of execution."""
    found = [("first_conv", tree["first_conv"])]
    for index, block in enumerate(tree["blocks"]):
        for part in ("pointwise1", "depthwise", "pointwise2"):
            if block.get(part) is not None:
                found.append((f"blocks.{index}.{part}", block[part]))
    if tree.get("feature_mix") is not None:
        found.append(("feature_mix", tree["feature_mix"]))
    return found


def _backbone_spec(tree: Mapping[str, Any], name: str) -> BackboneSpec:
    blocks = []
    for index, block in enumerate(tree["blocks"]):
        depthwise, project = block.get("depthwise"), block.get("pointwise2")
        where = f"{name}: blocks.{index}"
        if depthwise is None or project is None or block.get("se") is not None:
            raise ImportModelError(
                _STAGE,
                where,
                sorted(key for key in block if block[key]),
                "depthwise and pointwise2, no se",
                "only networks of inverted bottlenecks can be imported",
            )
        first = block.get("pointwise1") or depthwise
        spec = BlockSpec(
            first["in_channel"],
            depthwise["out_channel"],
            project["out_channel"],
            depthwise["kernel_size"][0],
            depthwise["stride"],
        )
        if spec.skips != (block.get("residual") is not None) or spec.expands != (
            block.get("pointwise1") is not None
        ):
            raise ImportModelError(
                _STAGE,
                where,
                f"residual {block.get('residual') is not None}, {spec}",
                "a skip connection where stride is 1 and channels agree, an expansion where hidden > in",
                "only networks of inverted bottlenecks can be imported",
            )
        blocks.append(spec)
    mix = tree.get("feature_mix")
    return BackboneSpec(
        name, tree["first_conv"]["out_channel"], tuple(blocks), None if mix is None else mix["out_channel"]
    )


def _fill_convolution(
    name: str, entry: Mapping[str, Any], values: Mapping[str, np.ndarray], unit: ConvUnit
) -> None:
    weight, bias = _real(name, entry, values)
    if unit.act is None and (_array(name, entry, values, "bias") == _SATURATED).any():
        raise ImportModelError(
            _STAGE,
            name,
            "a saturated bias",
            "none in a layer without activation",
            "quantise the network again",
        )
    _assign(name, unit.conv, weight, bias)


def _real(
    name: str, entry: Mapping[str, Any], values: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    scales = _array(name, entry, values, "w_scales").astype(np.float64)
    weight = _array(name, entry, values, "weight") * scales.reshape(-1, 1, 1, 1)
    return weight, _array(name, entry, values, "bias") * (entry["params"]["x_scale"] * scales)


def _array(name: str, entry: Mapping[str, Any], values: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    try:
        return values[entry["params"][key]["$array"]]
    except (KeyError, TypeError) as error:
        raise ImportModelError(
            _STAGE,
            f"{name}.{key}",
            "no such array",
            sorted(values)[:4],
            "the two files do not belong together",
        ) from error


def _assign(name: str, layer: nn.Conv2d | nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    assert layer.bias is not None
    if tuple(layer.weight.shape) != weight.shape or tuple(layer.bias.shape) != bias.shape:
        raise ImportModelError(
            _STAGE,
            name,
            f"weight {weight.shape}, bias {bias.shape}",
            f"{tuple(layer.weight.shape)}, {tuple(layer.bias.shape)}",
            "the two files do not belong together",
        )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
