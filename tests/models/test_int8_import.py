"""Import of int8 backbones: a hand-made network exactly, and the published ones where they are present."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.models import load_int8_backbone, mcunet, mobilenet_v2, proxyless_nas

MODELS = Path(os.environ.get("TINYTRAIN_MODELS", Path(__file__).parents[3] / "shared" / "models"))
published = pytest.mark.skipif(
    not MODELS.is_dir(),
    reason="no int8 backbones: set TINYTRAIN_MODELS to the folder of their .json and .npz",
)


class Maker:
    """Writes a network of a stem and one block (expand, depthwise, project) with known numbers."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.arrays: dict[str, np.ndarray] = {}
        self.tree: dict[str, Any] = {
            "first_conv": self.conv(rng, "first_conv", 3, 4, 3, 2),
            "blocks": [
                {
                    "pointwise1": self.conv(rng, "b.pw1", 4, 8, 1, 1),
                    "depthwise": self.conv(rng, "b.dw", 8, 8, 3, 1, groups=8),
                    "pointwise2": self.conv(rng, "b.pw2", 8, 4, 1, 1),
                    "residual": {"in_channel": 4},
                    "se": None,
                }
            ],
            "feature_mix": None,
            "classifier": self.conv(rng, "classifier", 4, 6, 1, 1),
        }

    def conv(
        self,
        rng: np.random.Generator,
        key: str,
        cin: int,
        cout: int,
        kernel: int,
        stride: int,
        groups: int = 1,
    ) -> dict[str, Any]:
        shape = (cout, cin // groups, kernel, kernel)
        self.arrays[f"{key}.weight"] = rng.integers(-127, 128, shape).astype(np.int8)
        self.arrays[f"{key}.bias"] = rng.integers(-3000, 3000, cout).astype(np.int32)
        self.arrays[f"{key}.w_scales"] = rng.uniform(0.001, 0.01, cout).astype(np.float32)
        named = {name: {"$array": f"{key}.{name}"} for name in ("weight", "bias", "w_scales")}
        return {
            "in_channel": cin,
            "out_channel": cout,
            "kernel_size": [kernel, kernel],
            "stride": stride,
            "groups": groups,
            "params": named | {"x_scale": 0.05, "x_zero": 0, "y_scale": 0.02, "y_zero": -128},
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        (folder / "net.json").write_text(json.dumps(self.tree), encoding="utf-8")
        np.savez(folder / "net.npz", **self.arrays)  # type: ignore[arg-type]
        return folder / "net.json", folder / "net.npz"

    def real(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        scales = self.arrays[f"{key}.w_scales"].astype(np.float64)
        weight = self.arrays[f"{key}.weight"] * scales[:, None, None, None]
        return torch.from_numpy(weight), torch.from_numpy(self.arrays[f"{key}.bias"] * 0.05 * scales)


def test_import_computes_what_the_numbers_say(tmp_path: Path) -> None:
    maker = Maker()
    maker.arrays["b.pw1.bias"][2] = -(2**31)
    maker.arrays["b.pw1.w_scales"][2] = 4e-9
    model = load_int8_backbone(*maker.write(tmp_path), classifier=True).double()
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64) * 2 - 1
    y = functional.conv2d(x, *maker.real("first_conv"), stride=2, padding=1).clamp(0, 6)
    hidden = functional.conv2d(y, *maker.real("b.pw1")).clamp(0, 6)
    assert hidden[:, 2].abs().max() == 0, "a saturated channel is dead"
    deep = functional.conv2d(hidden, *maker.real("b.dw"), padding=1, groups=8).clamp(0, 6)
    y = y + functional.conv2d(deep, *maker.real("b.pw2"))
    weight, bias = maker.real("classifier")
    expected = y.mean(dim=(2, 3)) @ weight[:, :, 0, 0].T + bias
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match="no such file"):
        load_int8_backbone(tmp_path / "a.json", tmp_path / "a.npz")


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    structure, arrays = Maker().write(tmp_path)
    structure.write_text('{"blocks":\n [}', encoding="utf-8")
    with pytest.raises(ImportModelError, match=r"net\.json:2:3"):
        load_int8_backbone(structure, arrays)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    maker = Maker()
    del maker.arrays["b.dw.bias"]
    with pytest.raises(ImportModelError, match=r"blocks\.0\.depthwise\.bias: found no such array"):
        load_int8_backbone(*maker.write(tmp_path))


def test_wrong_shape_names_the_layer(tmp_path: Path) -> None:
    maker = Maker()
    maker.arrays["b.pw2.weight"] = maker.arrays["b.pw2.weight"][:, :7]
    with pytest.raises(ImportModelError, match=r"blocks\.0\.pointwise2: found weight \(4, 7, 1, 1\)"):
        load_int8_backbone(*maker.write(tmp_path))


def test_squeeze_and_excite_is_refused(tmp_path: Path) -> None:
    maker = Maker()
    maker.tree["blocks"][0]["se"] = {"ratio": 4}
    with pytest.raises(ImportModelError, match="only networks of inverted bottlenecks"):
        load_int8_backbone(*maker.write(tmp_path))


def test_saturated_bias_without_activation_is_refused(tmp_path: Path) -> None:
    maker = Maker()
    maker.arrays["b.pw2.bias"][0] = -(2**31)
    with pytest.raises(ImportModelError, match=r"blocks\.0\.pointwise2: found a saturated bias"):
        load_int8_backbone(*maker.write(tmp_path))


@published
@pytest.mark.parametrize(
    ("stem", "factory"),
    [("mcunet-5fps", mcunet), ("mbv2-w0.35", mobilenet_v2), ("proxyless-w0.3", proxyless_nas)],
)
def test_published_networks_have_our_structure(stem: str, factory: Any) -> None:
    model = load_int8_backbone(MODELS / f"{stem}.json", MODELS / f"{stem}.npz")
    reference = factory() if stem == "mcunet-5fps" else factory(feature_mix=False)
    assert model.spec.blocks == reference.spec.blocks
    assert model.spec.stem_channels == reference.spec.stem_channels
    torch.manual_seed(0)
    features = model(torch.rand(2, 3, 128, 128) * 2 - 1)
    assert features.isfinite().all() and features.std() > 0.1
