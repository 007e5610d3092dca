"""What meta-training asks of a network, by what a checkpoint knows it again, and draws of its own that nobody else sees."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tvm_tinytrain.errors import DTypeError, PlanError, ShapeError


def find_device(name: str) -> torch.device:
    """The device of this name; PlanError where it is not there."""
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, ImportError) as error:  # by the device
        found, hint = _first_line(error), "cpu is always there"
        raise PlanError(
            "meta-train", f"device {name}", found, "cpu, or a cuda that is there", hint
        ) from error
    return device


def check_network(model: nn.Module, images: Tensor) -> None:
    """One pass in eval mode. Raises where what comes out is no embedding of each image, or nothing would be trained.

    Parameters are float32; an embedding is all but the first dimension of a float32 tensor.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            found = str(parameter.dtype).removeprefix("torch.")
            hint = "convert the network with model.float()"
            raise DTypeError("meta-train", f"parameter {name}", found, "float32", hint)
    model.eval()
    if not embeddings_of(model, images).requires_grad:
        found, hint = "none that the embeddings depend on", "see requires_grad of the network's parameters"
        raise PlanError("meta-train", "trained parameters", found, "one or more", hint)


def embeddings_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output [n, …]; ShapeError or DTypeError for what is no embedding of each image."""
    thing = f"network on images {list(images.shape)}"
    allowed = "a tensor [n, …] of embeddings"
    try:
        found = model(images)
    except Exception as error:  # PyTorch raises many kinds; their first lines say what is wrong
        hint = "check the images' channels and size"
        raise ShapeError("meta-train", thing, _first_line(error), allowed, hint) from error
    if not isinstance(found, Tensor):
        hint = "wrap the network in one that returns its embedding"
        raise ShapeError("meta-train", thing, type(found).__name__, allowed, hint)
    if found.ndim < 2 or len(found) != len(images):
        hint = "return one embedding for each image"
        raise ShapeError("meta-train", thing, list(found.shape), allowed, hint)
    if found.dtype != torch.float32:
        dtype = str(found.dtype).removeprefix("torch.")
        raise DTypeError("meta-train", thing, dtype, "float32", "convert the network with model.float()")
    return found


def weights_digest(model: nn.Module) -> str:
    """16 hex digits of all parameters and buffers with their names."""
    known = hashlib.sha256()
    for name, value in model.state_dict().items():
        known.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        known.update(value.detach().cpu().contiguous().numpy().tobytes())
    return known.hexdigest()[:16]


def structure_digest(model: nn.Module) -> str:
    """16 hex digits of the modules, their options, and which parameters are trained; no value counts, nor the code of forward."""
    kinds = [f"{name} {type(m).__module__}.{type(m).__qualname__}" for name, m in model.named_modules()]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    printed = re.sub(r" at 0x[0-9a-f]+", "", str(model))  # where a function lies is chance
    return hashlib.sha256("\n".join([printed, *kinds, *trained]).encode()).hexdigest()[:16]


@contextmanager
def own_draws(device: torch.device, *seed: int) -> Iterator[None]:
    """Dropout and the like draw from `seed` in here; PyTorch's own generators go on behind it as if nothing had happened."""
    first = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices: Sequence[int] = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices):
        if devices:
            torch.cuda.manual_seed_all(first)
        torch.default_generator.manual_seed(first)
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
