"""Which quarter to annotate: mIoU of the same small DeepLab, trained on a quarter and scored on all the rest.

The quarters: `spread` and `random` as `tool annotate push` draws them, and the first in the order of the names.
Each is drawn and trained with eight seeds (the first-in-order quarter stays the same, its networks differ), from
random weights: MobileNetV3, 160 steps of 4 crops of 192 pixels. What is scored is what the network is for: every
painting that nobody annotated, against the truth; all pixels of the rest counted together, mean over the classes.

The collections: 120 scenes of `demo/painter.py`, whose names have no order of meaning; the same scenes as a
folder sorted by motif would list them (roads, roads by water, water), where only the first-in-order quarter
changes; and the photographs, of 100 of COCO-Stuff, that show one of its 8 commonest classes (of those that at
least 10 photographs show), in the order of their numbers. Behind the mean stands its standard error over the seeds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED, ClassTable, PaintingClass
from annotate.files import read_json, write_json
from annotate.paintings import THUMBNAIL
from annotate.selection import draw_random, draw_spread, share
from demo.painter import paint
from segment.config import TrainConfig
from segment.data import Sample, normalise, scaled_size, to_tensor
from segment.scores import confusion, score
from segment.train import fit

SCENES, SEEDS, FRACTION = 120, range(8), 0.25
STEPS = 160
SIDE = 256  # smaller side of what the network sees
DONE = Path(tempfile.gettempdir()) / "selection"
PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "cocostuff"


@dataclass(frozen=True)
class Collection:
    """Paintings with the whole truth; the keys sort as the folder lists them."""

    name: str
    classes: ClassTable
    samples: Mapping[str, Sample]
    thumbnails: Mapping[str, NDArray[np.uint8]]


def run() -> list[dict[str, object]]:
    """One row for each collection and strategy."""
    scenes = painted()
    rows: list[dict[str, object]] = []
    collections: list[tuple[Collection, Sequence[str]]] = [
        (scenes, ("spread", "random", "first")),
        (sorted_by_motif(scenes), ("first",)),
    ]
    if PHOTOGRAPHS.is_dir():
        collections.append((photographs(), ("spread", "random", "first")))
    for collection, strategies in collections:
        for strategy in strategies:
            found = [_kept(collection, strategy, seed) for seed in SEEDS]
            rows.append(
                {
                    "collection": collection.name,
                    "annotated": f"{strategy} {share(len(collection.samples), FRACTION)}",
                    "mIoU, %": f"{mean(found):.1f} ± {stdev(found) / len(found) ** 0.5:.1f}",
                    "each seed": ", ".join(f"{one:.1f}" for one in found),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _kept(collection: Collection, strategy: str, seed: int) -> float:
    """`measure`, once: what is done stays in `DONE`, so that a run that was cut short goes on."""
    path = DONE / f"{collection.name}-{strategy}-{seed}.json"
    if not path.exists():
        write_json(path, measure(collection, STRATEGIES[strategy](collection, seed), seed))
    return float(read_json(path))


def _spread(collection: Collection, seed: int) -> set[str]:
    return draw_spread(collection.thumbnails, share(len(collection.samples), FRACTION), (), seed)


def _random(collection: Collection, seed: int) -> set[str]:
    return draw_random(collection.samples, share(len(collection.samples), FRACTION), (), seed)


def _first(collection: Collection, seed: int) -> set[str]:
    return set(sorted(collection.samples)[: share(len(collection.samples), FRACTION)])


STRATEGIES: dict[str, Callable[[Collection, int], set[str]]] = {
    "spread": _spread,
    "random": _random,
    "first": _first,
}


def measure(collection: Collection, chosen: set[str], seed: int) -> float:
    """mIoU in percent, on the paintings that were not chosen, of a network trained on those that were."""
    config = TrainConfig(
        init="none", steps=STEPS, batch=4, crop=192, smallest_side=SIDE, save_every=STEPS, seed=seed
    )
    learn = [collection.samples[key] for key in sorted(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        net = fit(learn, [], collection.classes, config, torch.device("cpu"), Path(folder), "bench").net
    count = len(collection.classes)
    matrix = np.zeros((count, count + 1), np.int64)
    for key in collection.samples.keys() - chosen:
        sample = collection.samples[key]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = net(normalise(sample.pixels[None]))["out"]  # (1, K, h, w)
        predicted = logits[0].float().argmax(0).to(torch.uint8).numpy()
        matrix += confusion(sample.labels.numpy(), predicted, count)
    return 100 * score(matrix, collection.classes.names).miou


def painted() -> Collection:
    """The painter's scenes, in the order of their seeds."""
    classes = ClassTable()
    samples, thumbnails = {}, {}
    for seed in range(SCENES):
        scene, key = paint(seed), f"scene-{seed:03d}"
        samples[key] = Sample(
            key, to_tensor(scene.painting), torch.from_numpy(classes.to_index(scene.ids)), key
        )
        thumbnails[key] = _thumbnail(Image.fromarray(scene.painting))
    return Collection("painter scenes", classes, samples, thumbnails)


def sorted_by_motif(scenes: Collection) -> Collection:
    """The same scenes, renamed so that those with a road alone come first, and those with water alone last."""
    road, water = (scenes.classes.names.index(name) for name in ("road", "water"))

    def motif(sample: Sample) -> int:
        shown = set(torch.unique(sample.labels).tolist())
        return 0 if water not in shown else 1 if road in shown else 2

    order = sorted(scenes.samples, key=lambda key: (motif(scenes.samples[key]), key))
    names = {key: f"{place:03d}" for place, key in enumerate(order)}
    return Collection(
        "painter scenes, sorted by motif",
        scenes.classes,
        {names[key]: one for key, one in scenes.samples.items()},
        {names[key]: one for key, one in scenes.thumbnails.items()},
    )


def photographs() -> Collection:
    """COCO-Stuff's photographs with their commonest classes; whatever else they show is unlabelled."""
    truth: dict[str, NDArray[np.uint8]] = {}
    for path in sorted((PHOTOGRAPHS / "masks").glob("*.png")):
        with Image.open(path) as mask:
            truth[path.stem] = np.asarray(mask)
    counts = np.stack([np.bincount(ids.ravel(), minlength=256) for ids in truth.values()])  # (N, 256)
    common = np.where((counts > 0).sum(0) >= 10, counts.sum(0), 0)
    common[UNLABELLED] = 0
    chosen = np.argsort(-common, kind="stable")[:8].tolist()
    classes = ClassTable(
        tuple(PaintingClass(str(one), one, "#000000", place) for place, one in enumerate(chosen))
    )
    samples, thumbnails = {}, {}
    for key, ids in truth.items():
        if not np.isin(ids, chosen).any():
            continue  # nothing in it could be annotated
        with Image.open(PHOTOGRAPHS / "images" / f"{key}.jpg") as opened:
            image = opened.convert("RGB")
        thumbnails[key] = _thumbnail(image)
        size = scaled_size(ids.shape, SIDE)
        labels = torch.from_numpy(classes.to_index(np.where(np.isin(ids, chosen), ids, UNLABELLED)))
        samples[key] = Sample(
            key,
            T.resize(to_tensor(np.asarray(image)), list(size), antialias=True),
            T.resize(labels[None], list(size), interpolation=T.InterpolationMode.NEAREST_EXACT)[0],
            key,
        )
    return Collection("COCO-Stuff photographs", classes, samples, thumbnails)


def _thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
