"""Pseudo-labels against full labelling: DeepLabV3 (MobileNetV3) from scratch, 60 of 240 paintings annotated.

The painter's scenes, 128 x 160 pixels, three draws of scenes and weights. Every network gets 200 steps of eight crops of
128 x 128 pixels; it is scored on the 180 paintings that nobody annotated. `a` is torchvision's reference recipe
(SGD 0.02, momentum 0.9, polynomial 0.9, scales 0.5 to 2, mirrored, plain cross-entropy, auxiliary head) on the 60
annotated ones, `b` the same recipe on 240 annotated ones, none of them among the 180. `hand masks alone` and
`self-training` are `tool segment train` with `--rounds 0` and `--rounds 1` on the 60, and `pseudo-label`.

Recovered is the share of the way from a to b. mIoU and street light IoU are means over the draws, in percent, the
spread is the sample standard deviation. Recovered above 100 % does not mean that self-training beats labels: most of
the way is the recipe (see `hand masks alone`), which would help b too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
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
from annotate.masks import Encoding, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from demo.painter import paint
from segment.config import LabelConfig, TrainConfig
from segment.data import normalise
from segment.device import has_fast_bfloat16
from segment.evaluate import against_truth
from segment.model import Segmenter, build
from segment.predict import predict_map, pseudo_label
from segment.scores import confusion, score
from segment.train import train

Scene = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (H, W, 3), (H, W) raw ids
Matrix = NDArray[np.int64]
SIZE = (128, 160)
HAND, REST, OTHERS = 60, 180, 180
SEEDS = (0, 1, 2)
STEPS, BATCH, CROP = 200, 8, 128
BASE = CROP * 520 // 480  # smaller side of a painting at scale 1, by the recipe's ratio to its crop
CLASSES = ClassTable()
CPU = torch.device("cpu")
# ours: the input is finer, for thin poles
OURS = TrainConfig(
    init="none",
    steps=STEPS,
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


def run() -> list[dict[str, object]]:
    """One row for each method, over all draws."""
    found = {name: [measure(name, seed) for seed in SEEDS] for name in METHODS}
    scores = {name: [score(one, CLASSES.names) for one in all_] for name, all_ in found.items()}
    miou = {name: [100 * one.miou for one in all_] for name, all_ in scores.items()}
    light = {name: [100 * (one.classes[-1].iou or 0.0) for one in all_] for name, all_ in scores.items()}
    gap = mean(miou["b"]) - mean(miou["a"])
    return [
        {
            "labels": TITLES[name],
            "mIoU": f"{mean(miou[name]):.1f} ± {stdev(miou[name]):.1f}",
            "each draw": ", ".join(f"{one:.1f}" for one in miou[name]),
            "recovered": f"{100 * (mean(miou[name]) - mean(miou['a'])) / gap:.0f} %",
            "street light": f"{mean(light[name]):.1f}",
        }
        for name in METHODS
    ]


def measure(method: str, seed: int) -> Matrix:
    """Confusion matrix (K, K + 1) over the paintings that nobody annotated."""
    path = DONE / f"{method}-{seed}.json"
    if not path.exists():
        write_json(path, METHODS[method](scenes(seed), seed).tolist())
    return np.array(json.loads(path.read_text()), np.int64)


def scenes(seed: int) -> list[Scene]:
    """The annotated ones, those to label, and others that only b knows."""
    path = DONE / f"scenes-{seed}.npz"
    if not path.exists():
        painted = [paint(1000 * seed + n, SIZE) for n in range(HAND + REST + OTHERS)]
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, paintings=[one.painting for one in painted], ids=[one.ids for one in painted])
    with np.load(path) as found:
        return list(zip(found["paintings"], found["ids"], strict=True))


def _reference_on(labelled: Callable[[Sequence[Scene]], Sequence[Scene]]) -> Callable[..., Matrix]:
    def work(scenes: Sequence[Scene], seed: int) -> Matrix:
        segmenter = Segmenter(reference(labelled(scenes), seed), CLASSES, BASE, "", CPU)
        matrix = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
        for image, ids in scenes[HAND : HAND + REST]:
            said = predict_map(segmenter, image, LabelConfig(flip=False))[0]
            matrix += confusion(CLASSES.to_index(ids), said, len(CLASSES))
        return matrix

    return work


def _ours(rounds: int) -> Callable[..., Matrix]:
    def work(scenes: Sequence[Scene], seed: int) -> Matrix:
        with tempfile.TemporaryDirectory() as name:
            workspace = Workspace(Path(name))
            (workspace.root / "paintings").mkdir()
            for n, (image, ids) in enumerate(scenes[: HAND + REST]):
                Image.fromarray(image).save(workspace.root / "paintings" / f"{n:03d}.png")
                write_mask(workspace.root / "truth" / f"{n:03d}.png", ids, Encoding.RAW)
                if n < HAND:
                    write_mask(workspace.mask("hand", f"{n:03d}"), ids, Encoding.RAW)
            write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)
            train(workspace, replace(OURS, rounds=rounds, seed=seed), "cpu")
            pseudo_label(workspace, LabelConfig(), "cpu")
            return against_truth(workspace, workspace.root / "truth")[1]

    return work


METHODS: dict[str, Callable[..., Matrix]] = {
    "a": _reference_on(lambda scenes: scenes[:HAND]),
    "b": _reference_on(lambda scenes: [*scenes[:HAND], *scenes[HAND + REST :]]),
    "hand": _ours(0),
    "rounds": _ours(1),
}
TITLES = {
    "a": "a: reference recipe, 60 annotated",
    "b": "b: reference recipe, 240 annotated",
    "hand": "hand masks alone, 60 annotated",
    "rounds": "self-training, 60 annotated",
}


def reference(scenes: Sequence[Scene], seed: int, lr: float = 0.02) -> nn.Module:
    """A network trained by torchvision's reference recipe.

    Source: pytorch/vision, references/segmentation/train.py and presets.py.
    """
    torch.manual_seed(seed)
    net = build("mobilenet_v3_large", len(CLASSES)).to(memory_format=torch.channels_last)
    heads = [one for name, one in net.named_parameters() if name.startswith("aux_classifier")]
    rest = [one for name, one in net.named_parameters() if not name.startswith("aux_classifier")]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": heads, "lr": 10 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, 0.9)
    rng = np.random.default_rng([seed, 77])
    order: list[int] = []
    for _ in range(STEPS):
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
    pixels, truth = torch.from_numpy(image).movedim(-1, 0), torch.from_numpy(CLASSES.to_index(labels))[None]
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
        measure(sys.argv[1], int(one))
