"""Pre-train MCUNet at 48×48 on clothes (Fashion-MNIST), for the demo: `python examples/pretrain_demo.py`.

What clothes have in common with handwriting is strokes: their outlines. A *scene* is a piece of one image at
a random place, angle and magnification, mostly as an outline. The network sees several views of each scene
under different affine and elastic maps and line widths, and learns to tell which views show the same scene
(the InfoNCE loss of van den Oord et al., 2018, over cosine similarities). No labels are used. One thread and
a fixed seed: the same machine and PyTorch write the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.arguments import at_least_one
from examples.demo_data import IMAGE_SIZE, WEIGHTS, load_pretrained, quantise_weights, to_network_input
from tvm_tinytrain.early_checks import check_output
from tvm_tinytrain.errors import ImportModelError, TinyTrainError
from tvm_tinytrain.models import Backbone, fuse, mcunet

DATASET = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class PretrainOptions:
    """Hyper-parameters; `learning_rate` is the peak of a one-cycle schedule for AdamW, lengths are half images."""

    steps: int = 2400
    scenes: int = 32
    views: int = 4
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    temperature: float = 0.15
    outlines: float = 0.8
    magnification: tuple[float, float] = (0.35, 1.3)
    margin: float = 1.35
    elastic: float = 0.11
    seed: int = 0


class SceneMaker:
    """Draws scenes and views of them from uint8 images [N, 28, 28]."""

    def __init__(self, images: Tensor, options: PretrainOptions) -> None:
        self.images = images
        self.options = options
        self.generator = torch.Generator().manual_seed(options.seed)

    def batch(self) -> Tensor:
        """Float32 [views · scenes, 3, 48, 48] in [-1, 1]; entry v · scenes + s is view v of scene s."""
        options, count = self.options, self.options.scenes
        index = torch.randint(len(self.images), (count,), generator=self.generator)
        gray = self.images[index].unsqueeze(1).float() / 255.0
        place = self._place(count)
        drawn = (self._uniform(count, 0, 1) < options.outlines)[:, None, None, None]
        views = torch.cat([self._view(gray, place, drawn) for _ in range(options.views)])
        return views.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low

    def _place(self, count: int) -> Tensor:
        """Where the scenes lie in their images: affine maps [count, 3, 3] from scene to image coordinates."""
        low, high = self.options.magnification
        zoom = torch.exp(self._uniform(count, math.log(low), math.log(high)))
        mirror = torch.where(self._uniform(count, 0, 1) < 0.5, 1.0, -1.0)
        room = 0.8 * (1.0 - zoom).clamp_min(0) + 0.1
        angle, shear = self._uniform(count, -math.pi, math.pi), self._uniform(count, -0.2, 0.2)
        shift_x, shift_y = self._uniform(count, -1, 1) * room, self._uniform(count, -1, 1) * room
        return affine(angle, zoom * mirror, zoom, shear, shift_x, shift_y)

    def _view(self, gray: Tensor, place: Tensor, drawn: Tensor) -> Tensor:
        """One view [count, 1, 48, 48] of each scene: the scene in a black margin, moved, bent, in some pen's stroke."""
        count, margin = len(gray), self.options.margin
        angle, shear = self._uniform(count, -0.35, 0.35), self._uniform(count, -0.42, 0.42)
        zoom_x, zoom_y = self._uniform(count, 0.72, 1.35) * margin, self._uniform(count, 0.72, 1.35) * margin
        shift_x, shift_y = self._uniform(count, -0.21, 0.21), self._uniform(count, -0.21, 0.21)
        motion = affine(angle, zoom_x, zoom_y, shear, shift_x, shift_y)
        bend = self.options.elastic * torch.randn(count, 2, 4, 4, generator=self.generator)
        bend = functional.interpolate(bend, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
        scene = grid_of(motion) + bend.permute(0, 2, 3, 1)  # coordinates in the scene, which spans [-1, 1]
        turned = torch.einsum("nij,nhwj->nhwi", place[:, :2, :2], scene) + place[:, None, None, :2, 2]
        x = functional.grid_sample(gray, turned, align_corners=False)
        x = torch.where(drawn, self._outline(x), x) * (scene.abs().amax(dim=-1) < 1).unsqueeze(1)
        gamma, contrast = self._uniform(count, 0.6, 1.6), self._uniform(count, 0.7, 1.0)
        x = x.clamp(0, 1) ** gamma[:, None, None, None] * contrast[:, None, None, None]
        return 2.0 * (x + 0.03 * torch.randn(x.shape, generator=self.generator)).clamp(0, 1) - 1.0

    def _outline(self, x: Tensor) -> Tensor:
        """Morphological gradient over 3×3 with a contrast and one of two line widths per image."""
        gain = self._uniform(len(x), 2, 7)[:, None, None, None]
        thick = (self._uniform(len(x), 0, 1) < 0.4)[:, None, None, None]
        line = functional.max_pool2d(x, 3, 1, 1) + functional.max_pool2d(-x, 3, 1, 1)
        line = (line * gain - 0.35).clamp(0, 1)
        return torch.where(thick, functional.max_pool2d(line, 3, 1, 1), line)


def affine(
    angle: Tensor, zoom_x: Tensor, zoom_y: Tensor, shear: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Homogeneous maps [N, 3, 3] of 2-D coordinates: turn and shear, scale each axis, shift."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (
        (zoom_x * cos, zoom_x * (shear * cos - sin), shift_x),
        (zoom_y * sin, zoom_y * (shear * sin + cos), shift_y),
        (zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def grid_of(maps: Tensor) -> Tensor:
    """Where the maps [N, 3, 3] send each pixel of an output image: coordinates [N, 48, 48, 2] in [-1, 1]."""
    size = [len(maps), 1, IMAGE_SIZE, IMAGE_SIZE]
    return functional.affine_grid(maps[:, :2], size, align_corners=False)


def info_nce(features: Tensor, options: PretrainOptions) -> Tensor:
    """Mean over views of −log p(the view is matched with another of its scene); features [views · scenes, C]."""
    directions = functional.normalize(features, dim=1)
    count = len(features)
    itself = torch.eye(count, dtype=torch.bool)
    similarity = (directions @ directions.T / options.temperature).masked_fill(itself, -1e9)
    scene = torch.arange(count) % options.scenes
    partner = (scene[:, None] == scene[None]) & ~itself
    return -functional.log_softmax(similarity, dim=1)[partner].mean()


def pretrain(images: Tensor, options: PretrainOptions) -> Backbone:
    """Train features on uint8 images [N, 28, 28]; returns the training form, in eval mode, without a head."""
    torch.manual_seed(options.seed)
    model = mcunet().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on one thread
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.15, cycle_momentum=False
    )
    scenes = SceneMaker(images, options)
    mean_loss = math.log(options.scenes * options.views - 1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("pre-training", total=options.steps)
        for step in range(1, options.steps + 1):
            loss = info_nce(model(scenes.batch()), options)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            mean_loss += 0.03 * (loss.item() - mean_loss)
            progress.update(task, advance=1, description=f"pre-training, loss {mean_loss:.3f}")
            if step % 400 == 0:
                progress.console.print(f"step {step}: loss {mean_loss:.3f}")
    return model.eval()


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes, plain or with .gz behind its name → uint8 tensor of its shape."""
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


@torch.no_grad()
def clothes_accuracy(model: Backbone, images: Tensor, labels: Tensor) -> float:
    """Accuracy on clothes by the nearest class mean of features, the means from the first half of the images."""
    features = torch.cat([model(to_network_input(part)) for part in images.split(500)])
    half = len(images) // 2
    means = torch.stack([features[:half][labels[:half] == kind].mean(dim=0) for kind in range(10)])
    return float((torch.cdist(features[half:], means).argmin(dim=1) == labels[half:]).float().mean())


def main(words: list[str] | None = None) -> int:
    """Runs with the words of a command line; returns the exit code."""
    defaults = PretrainOptions()
    parser = argparse.ArgumentParser(description="pre-train the demo's MCUNet on clothes")
    parser.add_argument("--path", type=Path, default=DATASET, help="folder of the IDX files (%(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args(words)
    options = PretrainOptions(steps=arguments.steps, seed=arguments.seed)
    print(options)
    try:
        check_output(arguments.out)
        run(arguments.path, arguments.out, options)
    except TinyTrainError as error:
        print(f"pretrain_demo: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(path: Path, out: Path, options: PretrainOptions) -> None:
    """Train on the images under `path`, write the weights to `out`, print what they are worth."""
    torch.set_num_threads(1)
    began = time.monotonic()
    fused = fuse(pretrain(read_idx(path / "train-images-idx3-ubyte"), options))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **quantise_weights(fused))
    test = [read_idx(path / f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    print(f"clothes, nearest class mean: float weights {clothes_accuracy(fused, test[0], test[1]):.4f}")
    rounded = load_pretrained(out)
    print(f"clothes, nearest class mean: int8 weights {clothes_accuracy(rounded, test[0], test[1]):.4f}")
    print(f"{out.name}: {out.stat().st_size} bytes, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
