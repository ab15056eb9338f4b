"""The same comparison as `segment_quality` on 100 photographs with COCO-Stuff masks, from scratch.

Of the photographs, scaled to a smaller side of 128 pixels, 15 are annotated, 45 are labelled and scored, and 40 are known
with their labels to `b` alone; 200 steps; the nine classes that at least 13 photographs show, all else is unlabelled. Fifteen
photographs and no pretrained weights are far too few for good labels: this asks for the difference, not the height.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from annotate.classes import UNLABELLED, ClassTable, PaintingClass
from annotate.errors import UserError
from bench.segment_quality import Draw, Scene, table

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "cocostuff"
NAMES = {
    "person": 0,
    "tree": 168,
    "wall": 171,
    "building": 95,
    "metal": 131,
    "grass": 123,
    "pavement": 139,
    "clouds": 105,
    "sky": 156,
}
SIDE, STEPS = 128, 200


def run() -> list[dict[str, object]]:
    """One row for each method, over all draws."""
    if not FOLDER.is_dir():
        raise UserError(f"{FOLDER}: no photographs; put images/*.jpg and masks/*.png of COCO-Stuff there")
    return table("photographs", drawn, ("a", "b", "hand"))


def drawn(seed: int) -> Draw:
    """The photographs in the order of a seed."""
    colours = [f"#{40 * k % 256:02x}{90 * k % 256:02x}{170 * k % 256:02x}" for k in range(len(NAMES))]
    classes = ClassTable(
        tuple(PaintingClass(name, id_, colours[k], k) for k, (name, id_) in enumerate(NAMES.items()))
    )
    paths = sorted((FOLDER / "masks").glob("*.png"))
    order = np.random.default_rng([seed, 31]).permutation(len(paths))
    scenes = [_photograph(paths[n], classes) for n in order]
    return Draw(scenes[:15], scenes[15:60], scenes[60:], classes, seed, STEPS)


def _photograph(path: Path, classes: ClassTable) -> Scene:
    image = Image.open(FOLDER / "images" / f"{path.stem}.jpg").convert("RGB")
    factor = SIDE / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    ids = np.asarray(Image.open(path).resize(size, Image.Resampling.NEAREST))
    known = np.where(np.isin(ids, classes.ids), ids, UNLABELLED).astype(np.uint8)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), known
