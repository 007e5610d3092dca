"""Pre-train MCUNet at 48×48 on clothes (Fashion-MNIST), for the demo: `python -m examples.pretrain_demo`.

The pretext task is made to transfer to shapes that the network never sees: each image comes turned by 0, 90,
180 or 270 degrees and the turn is part of the label (40 classes), under a random affine map, and half of the
time as an outline of itself, since strokes are what handwriting consists of. One thread, fixed seed: the same
machine writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from examples.demo_data import IMAGE_SIZE, WEIGHTS, load_pretrained, quantise_weights, to_network_input
from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.models import Backbone, fuse, mcunet

DATASET = Path("/usr/share/datasets/fashion-mnist")
NUM_CLOTHES = 10
NUM_TURNS = 4


@dataclass(frozen=True)
class PretrainOptions:
    """Hyper-parameters of the run; `learning_rate` is the peak of a one-cycle schedule for AdamW."""

    epochs: int = 5
    batch: int = 96
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    outlines: float = 0.5
    seed: int = 0


def read_idx(path: Path) -> Tensor:
    """An IDX file (gzip or plain) of bytes → uint8 tensor of its shape."""
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and not packed.is_file():
        raise ImportModelError(
            "demo",
            str(path),
            "no such file",
            "an IDX file, plain or .gz",
            "apt-get install dataset-fashion-mnist, or give --path",
        )
    raw = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)


def augment(gray: Tensor, options: PretrainOptions, generator: torch.Generator) -> Tensor:
    """uint8 [N, 28, 28] → float32 [N, 3, 48, 48] in [-1, 1]: affine map, outline or not, contrast, noise."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(gray), generator=generator) * (high - low) + low

    angle, zoom_x, zoom_y = uniform(-0.35, 0.35), uniform(0.8, 1.5), uniform(0.8, 1.3)
    shear, shift_x, shift_y = uniform(-0.35, 0.35), uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([zoom_x * cos, zoom_x * (shear * cos - sin), shift_x], dim=1)
    bottom = torch.stack([zoom_y * sin, zoom_y * (shear * sin + cos), shift_y], dim=1)
    grid = functional.affine_grid(
        torch.stack([top, bottom], dim=1), [len(gray), 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
    )
    x = functional.grid_sample(gray.float().unsqueeze(1) / 255.0, grid, align_corners=False)
    drawn = (uniform(0, 1) < options.outlines)[:, None, None, None]
    x = torch.where(drawn, _outline(x, uniform(1.5, 6.0)), x)
    x = x.clamp(0, 1) ** uniform(0.6, 1.6)[:, None, None, None] * uniform(0.7, 1.0)[:, None, None, None]
    x = x + 0.03 * torch.randn(x.shape, generator=generator)
    return (2.0 * x.clamp(0, 1) - 1.0).repeat(1, 3, 1, 1)


def _outline(x: Tensor, gain: Tensor) -> Tensor:
    """Morphological gradient over 3×3 (lines as thick as a pen's), with a contrast per image."""
    spread = functional.max_pool2d(x, 3, 1, 1)
    shrunk = -functional.max_pool2d(-x, 3, 1, 1)
    return ((spread - shrunk) * gain[:, None, None, None] - 0.3).clamp(0, 1)


def pretrain(images: Tensor, labels: Tensor, options: PretrainOptions) -> Backbone:
    """Train on uint8 images [N, 28, 28] with labels [N] < 10; gives the training form with 40 classes."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = mcunet(num_classes=NUM_CLOTHES * NUM_TURNS).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on one thread
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    steps = options.epochs * (len(images) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    mean_loss = math.log(NUM_CLOTHES * NUM_TURNS)
    with Progress(*columns) as progress:
        task = progress.add_task("pre-training", total=steps)
        for epoch in range(options.epochs):
            order = torch.randperm(len(images), generator=generator)
            for start in range(0, len(images) - options.batch + 1, options.batch):
                index = order[start : start + options.batch]
                turn = torch.randint(NUM_TURNS, (1,), generator=generator).item()
                turns = (torch.arange(len(index)) + turn) % NUM_TURNS
                x = augment(turn_images(images[index], turns), options, generator)
                logits = model(x.contiguous(memory_format=torch.channels_last))
                target = labels[index].long() * NUM_TURNS + turns
                loss = functional.cross_entropy(logits, target, label_smoothing=options.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                mean_loss += 0.02 * (loss.item() - mean_loss)
                progress.update(task, advance=1, description=f"pre-training, loss {mean_loss:.3f}")
            progress.console.print(f"epoch {epoch + 1}: loss {mean_loss:.3f}")
    return model.eval()


def turn_images(gray: Tensor, turns: Tensor) -> Tensor:
    """Turn image i of [N, H, W] by turns[i] quarter turns."""
    out = torch.empty_like(gray)
    for quarter in range(NUM_TURNS):
        chosen = turns == quarter
        out[chosen] = torch.rot90(gray[chosen], quarter, dims=(1, 2))
    return out


@torch.no_grad()
def clothes_accuracy(model: Backbone, images: Tensor, labels: Tensor) -> float:
    """Accuracy over the 10 kinds of clothes, upright, from a network with the 40-class head."""
    hits = 0
    for start in range(0, len(images), 500):
        logits = model(to_network_input(images[start : start + 500]))
        hits += int(
            (
                logits.reshape(-1, NUM_CLOTHES, NUM_TURNS)[..., 0].argmax(1) == labels[start : start + 500]
            ).sum()
        )
    return hits / len(images)


def main() -> None:
    """Command line."""
    defaults = PretrainOptions()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--path", type=Path, default=DATASET, help="folder of the four IDX files (default %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    options = PretrainOptions(epochs=arguments.epochs, seed=arguments.seed)
    print(options)
    torch.set_num_threads(1)
    began = time.monotonic()
    train = [read_idx(arguments.path / f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    test = [read_idx(arguments.path / f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    model = pretrain(train[0], train[1], options)
    fused = fuse(model)
    print(f"clothes, test accuracy, float: {clothes_accuracy(fused, *test):.4f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **quantise_weights(fused))
    for unit, rounded in zip(fused.conv_units(), load_pretrained(arguments.out).conv_units(), strict=True):
        unit.load_state_dict(rounded.state_dict())
    print(f"clothes, test accuracy, int8 weights: {clothes_accuracy(fused, *test):.4f}")
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
