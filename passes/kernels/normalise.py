"""From bytes of an image to what the network was trained on."""

from __future__ import annotations

import math
from typing import Any

from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel, remap_all


def normalise(shape: tuple[int, ...], scale: float, offset: float) -> Any:
    """y = x · scale + offset. Arguments: x uint8, y float32, both of ``shape``."""

    def body(x: Any, y: Any) -> None:
        with T.grid(*shape) as found, T.sblock("normalise"):
            at = remap_all(found, len(shape))
            T.buffer_store(y, x[tuple(at)].astype("float32") * f32(scale) + f32(offset), at)

    args = [Arg("x", shape, "uint8"), Arg("y", shape, role="out")]
    spec = {"size": math.prod(shape), "scale": scale, "offset": offset}
    return make_kernel("normalise", spec, args, body, macs=0)
