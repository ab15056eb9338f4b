"""Pseudo-labels against full labelling: DeepLabV3 (MobileNetV3) from scratch, 60 of 240 paintings annotated.

The painter's scenes, 128 x 160 pixels, three draws of scenes and weights. Every network gets 800 steps of eight crops of
128 x 128 pixels; it is scored on the 180 paintings that nobody annotated. `a` is torchvision's reference recipe
(SGD 0.02, momentum 0.9, polynomial 0.9, scales 0.5 to 2, mirrored, plain cross-entropy, auxiliary head) on the 60
annotated ones, `b` the same recipe on 240 annotated ones, none of them among the 180. The others are `tool segment train`
and `pseudo-label` on the 60: `hand masks alone` with `--rounds 0`, `self-training` with `--rounds 1`, and the same with
`--consistency`, which is on the first draw alone.

Recovered is the share of the way from a to b. mIoU and street light IoU are means over the draws in percent, with 95 %
intervals by drawing the scored paintings again. A share above 100 % does not mean that a tool beats labels: it means
that the recipe (finer input, classes and crops balanced, dice loss, AdamW, running average) gains more than three times
as many labels do, and it would gain with them too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED, ClassTable
from annotate.files import whole_file, write_json
from annotate.masks import Encoding, read_mask, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from demo.painter import paint
from segment.config import LabelConfig, TrainConfig
from segment.data import normalise
from segment.device import has_fast_bfloat16
from segment.label import pseudo_label
from segment.model import Segmenter, build
from segment.predict import predict_map
from segment.scores import confusion, score
from segment.train import train

Scene = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (H, W, 3), (H, W) raw ids
Matrices = NDArray[np.int64]  # (N, K, K + 1): the confusion matrix of each painting that nobody annotated
SIZE = (128, 160)
HAND, REST, OTHERS = 60, 180, 180
SEEDS, FEWER = (0, 1, 2), (0,)  # of the last method fewer: it takes longest, and is off by default
STEPS, BATCH, CROP = 800, 8, 128
BASE = CROP * 520 // 480  # smaller side of a painting at scale 1, by the recipe's ratio to its crop
CPU = torch.device("cpu")
# ours: the input is finer, for thin poles
OURS = TrainConfig(
    init="none",
    batch=BATCH,
    crop=CROP,
    smallest_side=240,
    lr=2e-3,
    scale_low=0.6,
    scale_high=1.4,
    colour=0.2,
    balance=0.25,
    dice=0.5,
    held_out=0.0,
    save_every=100,
)
DONE = Path(tempfile.gettempdir()) / "segment-quality"  # measurements that are done: it can be run in parts


@dataclass(frozen=True)
class Draw:
    """What one draw of the benchmark learns from and is scored on."""

    hand: Sequence[Scene]  # annotated
    rest: Sequence[Scene]  # scored, and labelled by no one
    others: Sequence[Scene]  # that only b knows, with their labels
    classes: ClassTable
    seed: int
    steps: int = STEPS  # of every network


def run() -> list[dict[str, object]]:
    """One row for each method, over all draws."""
    return table("painter", painted, list(METHODS), "street light")


def table(
    name: str, draw: Callable[[int], Draw], methods: Sequence[str], thin: str | None = None
) -> list[dict[str, object]]:
    """One row for each method; `a` and `b` among them.

    Args:
        name: of the data, for the measurements that are kept.
        draw: the data of a seed.
        thin: a class whose IoU gets a column.
    """
    seeds = {method: FEWER if method == "consistency" else SEEDS for method in methods}
    found = {method: [measure(name, draw, method, seed) for seed in seeds[method]] for method in methods}
    names = draw(SEEDS[0]).classes.names
    middle = {method: [_miou(one, names) for one in all_] for method, all_ in found.items()}
    rows: list[dict[str, object]] = []
    for method, all_ in found.items():
        low, high = _interval(all_, names)
        least, most = (mean(middle[one]) for one in "ab")
        row: dict[str, object] = {
            "labels": TITLES[method],
            "mIoU": f"{mean(middle[method]):.1f} ({low:.1f} to {high:.1f})",
            "each draw": ", ".join(f"{one:.1f}" for one in middle[method]),
            "recovered": _way(mean(middle[method]), least, most),
        }
        if thin is not None:
            k = names.index(thin)
            ious = [100 * (score(one.sum(0), names).classes[k].iou or 0.0) for one in all_]
            row[thin] = f"{mean(ious):.1f}"
        rows.append(row)
    return rows


def _way(middle: float, least: float, most: float) -> str:
    return f"{100 * (middle - least) / (most - least):.0f} %" if most > least else "b is no better than a"


def _miou(matrices: Matrices, names: list[str]) -> float:
    return 100 * score(matrices.sum(0), names).miou


def _interval(draws: Sequence[Matrices], names: list[str], times: int = 1000) -> tuple[float, float]:
    """95 % of the mean mIoU when the scored paintings of each draw are drawn again with replacement."""
    rng = np.random.default_rng(0)
    means = [
        mean(_miou(one[rng.integers(len(one), size=len(one))], names) for one in draws) for _ in range(times)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def measure(name: str, draw: Callable[[int], Draw], method: str, seed: int) -> Matrices:
    """Confusion matrices of the paintings that nobody annotated."""
    path = DONE / f"{name}-{method}-{seed}.json"
    if not path.exists():
        write_json(path, METHODS[method](draw(seed)).tolist())
    return np.array(json.loads(path.read_text()), np.int64)


def painted(seed: int) -> Draw:
    """Scenes of the demo's painter."""
    path = DONE / f"scenes-{seed}.npz"
    if not path.exists():
        made = [paint(1000 * seed + n, SIZE) for n in range(HAND + REST + OTHERS)]
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, paintings=[one.painting for one in made], ids=[one.ids for one in made])
    with np.load(path) as found:
        scenes = list(zip(found["paintings"], found["ids"], strict=True))
    return Draw(scenes[:HAND], scenes[HAND : HAND + REST], scenes[HAND + REST :], ClassTable(), seed)


def _by_recipe(draw: Draw, labelled: Sequence[Scene]) -> Matrices:
    """The reference recipe on these scenes."""
    indices = [(image, draw.classes.to_index(ids)) for image, ids in labelled]
    net = reference(indices, len(draw.classes), draw.seed, draw.steps)
    segmenter = Segmenter(net, draw.classes, BASE, "", CPU)
    plain = LabelConfig(flip=False)
    said = [predict_map(segmenter, image, plain)[0] for image, _ in draw.rest]
    return _compare(draw, said)


def _by_tool(draw: Draw, rounds: int, consistency: bool = False) -> Matrices:
    """`tool segment train` and `pseudo-label` in a workspace of the annotated scenes and those to label."""
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name))
        workspace.save_settings(classes=draw.classes)
        folder = workspace.root / "paintings"
        folder.mkdir()
        for n, (image, ids) in enumerate([*draw.hand, *draw.rest]):
            Image.fromarray(image).save(folder / f"{n:03d}.png")
            if n < len(draw.hand):
                write_mask(workspace.mask("hand", f"{n:03d}"), ids, Encoding.RAW)
        write_index(workspace, scan(folder, workspace).paintings)
        config = replace(OURS, steps=draw.steps, rounds=rounds, consistency=consistency, seed=draw.seed)
        train(workspace, config, "cpu")
        pseudo_label(workspace, LabelConfig(), "cpu")
        keys = [f"{len(draw.hand) + n:03d}" for n in range(len(draw.rest))]
        masks = [read_mask(workspace.mask("pseudo", key), Encoding.RAW) for key in keys]
    return _compare(draw, [draw.classes.to_index(one) for one in masks])


def _compare(draw: Draw, said: Sequence[NDArray[np.uint8]]) -> Matrices:
    pairs = zip(draw.rest, said, strict=True)
    return np.stack(
        [confusion(draw.classes.to_index(ids), one, len(draw.classes)) for (_, ids), one in pairs]
    )


METHODS: dict[str, Callable[[Draw], Matrices]] = {
    "a": lambda draw: _by_recipe(draw, draw.hand),
    "b": lambda draw: _by_recipe(draw, [*draw.hand, *draw.others]),
    "hand": lambda draw: _by_tool(draw, 0),
    "rounds": lambda draw: _by_tool(draw, 1),
    "consistency": lambda draw: _by_tool(draw, 1, consistency=True),
}
TITLES = {
    "a": "a: reference recipe on the annotated",
    "b": "b: reference recipe, all annotated",
    "hand": "hand masks alone",
    "rounds": "self-training",
    "consistency": "self-training, consistent",
}


def reference(scenes: Sequence[Scene], n_classes: int, seed: int, steps: int, lr: float = 0.02) -> nn.Module:
    """A network trained by torchvision's reference recipe on paintings and class indices.

    Source: pytorch/vision, references/segmentation/train.py and presets.py.
    """
    torch.manual_seed(seed)
    net = build("mobilenet_v3_large", n_classes).to(memory_format=torch.channels_last)
    heads = [one for name, one in net.named_parameters() if name.startswith("aux_classifier")]
    rest = [one for name, one in net.named_parameters() if not name.startswith("aux_classifier")]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": heads, "lr": 10 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, 0.9)
    rng = np.random.default_rng([seed, 77])
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += rng.permutation(len(scenes)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        crops = [_augment(rng, *scenes[n]) for n in chosen]
        pixels, labels = (torch.stack(part) for part in zip(*crops, strict=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(CPU)):
            found = net(normalise(pixels))
        losses = [F.cross_entropy(one.float(), labels, ignore_index=UNLABELLED) for one in found.values()]
        loss = losses[0] + 0.5 * losses[1]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


def _augment(
    rng: np.random.Generator, image: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[Tensor, Tensor]:
    """Random scale 0.5 to 2, mirror, random crop with padding."""
    pixels, truth = torch.from_numpy(image).movedim(-1, 0), torch.from_numpy(labels)[None]
    side = int(BASE * rng.uniform(0.5, 2.0))
    factor = side / min(labels.shape)
    size = [round(one * factor) for one in labels.shape]
    pixels = T.resize(pixels, size, antialias=True)
    truth = T.resize(truth, size, interpolation=T.InterpolationMode.NEAREST_EXACT)
    if rng.random() < 0.5:
        pixels, truth = pixels.flip(-1), truth.flip(-1)
    room = [max(0, CROP - one) for one in size]
    pixels = F.pad(pixels, (0, room[1], 0, room[0]))
    truth = F.pad(truth, (0, room[1], 0, room[0]), value=UNLABELLED)
    top, left = (int(rng.integers(one - CROP + 1)) for one in pixels.shape[1:])
    box = np.s_[..., top : top + CROP, left : left + CROP]
    return pixels[box], truth[box][0].long()


if __name__ == "__main__":
    for one in sys.argv[2:]:  # METHOD SEED...: one part at a time
        measure("painter", painted, sys.argv[1], int(one))
