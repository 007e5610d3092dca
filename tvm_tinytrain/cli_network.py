"""``--network``, ``--weights``, ``--size``: a network from a file or by its name. For ``evaluate``, ``meta-train`` and ``tune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import ImportModelError, check_least

DEFAULT_SIZE = 128


def image_size(stage: str, network: Any, size: int | None) -> int:
    """Width and height of the images for what `load_network` gave: ``--size``; without it those of an exported program, else 128.

    Raises ImportModelError for a program whose input is no such image, or another than ``--size`` says.
    """
    check_least(stage, {} if size is None else {"--size": (size, 1)}, f"see tinytrain {stage} --help")
    if not isinstance(network, str):
        return DEFAULT_SIZE if size is None else size
    from tvm_tinytrain.frontend import read_program

    program = read_program(Path(network))
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shape = [list(node.meta["val"].shape) for node in inputs]
    image = shape[0] if len(shape) == 1 else []
    if len(image) != 4 or image[1] != 3 or image[2] != image[3]:
        allowed, hint = "one colour image, [1, 3, size, size]", "export a network of one image"
        if len(image) == 4:
            hint = "export a network for images as wide as high"
            if image[1] != 3:
                hint = "export a network for images of three channels: grey ones are read as colour too"
        raise ImportModelError(stage, "--network, input", shape, allowed, hint)
    if size not in (None, image[2]):
        hint = "leave it out: the file says it"
        raise ImportModelError(stage, "--size", size, f"{image[2]}, the network's input", hint)
    return int(image[2])


def load_network(name: str, weights: Path | None) -> Any:
    """A network from a file (the path of a .pt2) or a name; ImportModelError where it is neither, or the weights do not fit."""
    import torch

    from tvm_tinytrain import models

    path = Path(name)
    if path.suffix in (".json", ".pt2"):
        if weights is not None:
            hint = "leave --weights out: the file holds the network's own"
            allowed = "weights for a network given by name"
            raise ImportModelError("network", f"--weights {weights}", f"--network {name}", allowed, hint)
        return (
            str(path) if path.suffix == ".pt2" else models.load_int8_backbone(path, path.with_suffix(".npz"))
        )
    makers = {
        "mcunet": models.mcunet,
        "mobilenet-v2": models.mobilenet_v2,
        "proxyless-nas": models.proxyless_nas,
    }
    if name not in makers:
        allowed = f".json, .pt2, {', '.join(makers)}"
        raise ImportModelError("network", name, "unknown", allowed, "see the command's --help")
    torch.manual_seed(0)
    state = None if weights is None else _read_state(weights)
    model: torch.nn.Module = makers[name](fused=state is not None and not any(".norm." in k for k in state))
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise ImportModelError(
                "network", str(weights), first, f"the weights of {name}", "choose its file"
            ) from error
    return model.eval()


def _read_state(path: Path) -> Mapping[str, Any]:
    """The tensors of a state dict, or of its entry "model", without a classifier's."""
    import torch

    hint = "save it with torch.save(model.state_dict(), path)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for another or a damaged file
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise ImportModelError("network", str(path), found, "a state dict", hint) from error
    if isinstance(state, Mapping):
        state = state.get("model", state)
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        found = "other values than tensors by name" if isinstance(state, Mapping) else type(state).__name__
        raise ImportModelError("network", str(path), found, "a state dict", hint)
    return {k: v for k, v in state.items() if not k.startswith("head.")}
