"""Does a vote inside superpixels make pseudo-labels better? No: that is why there is no such option.

The pseudo-labels are those that `trust` leaves behind, all its draws together, of 60 painter scenes each (run it first). SLIC
(scikit-image, compactness 10, sigma 1) cuts each painting into about so many superpixels, and all pixels of one take its commonest label.
mIoU and street light IoU against the masks that the painter knows, in percent; `better in` counts the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask
from annotate.paintings import load_painting, read_index
from annotate.workspace import Workspace
from bench.trust import FOLDER
from segment.scores import Scores, confusion, score

COUNTS = (0, 100, 200, 400, 800)  # superpixels; 0 leaves the labels alone
Labels = NDArray[np.uint8]


def run() -> list[dict[str, object]]:
    """One row for each number of superpixels."""
    folders = sorted(one for one in FOLDER.glob("draw-*") if (one / "masks" / "pseudo").is_dir())
    if not folders:
        raise UserError(f"{FOLDER}: no draws; run `python -m bench trust` first")
    found = {count: [_score(Workspace(folder), count) for folder in folders] for count in COUNTS}
    plain = [one.miou for one in found[0]]
    return [
        {
            "superpixels": count or "none",
            "mIoU": 100 * mean(one.miou for one in scores),
            "street light": 100 * mean(_street_light(one) for one in scores),
            "better in": f"{_better(scores, plain)} of {len(folders)}" if count else "",
        }
        for count, scores in found.items()
    ]


def _score(workspace: Workspace, count: int) -> Scores:
    classes = ClassTable()
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    paintings = read_index(workspace)
    for key in workspace.keys_with_mask("pseudo"):
        true = classes.to_index(read_mask(workspace.root / "truth" / f"{key}.png", Encoding.RAW))
        said = classes.to_index(read_mask(workspace.mask("pseudo", key), Encoding.RAW))
        if count:
            said = vote(said, load_painting(paintings[key].file(workspace)), count)
        matrix += confusion(true, said, len(classes))
    return score(matrix, classes.names)


def vote(labels: Labels, image: Labels, count: int) -> Labels:
    """(H, W) labels, one for each of about `count` superpixels of an image (H, W, 3)."""
    cells = slic(image, count, compactness=10, sigma=1, start_label=0)  # (H, W)
    votes = np.zeros((int(cells.max()) + 1, 256), np.int64)
    np.add.at(votes, (cells.ravel(), labels.ravel()), 1)
    voted: Labels = votes.argmax(1).astype(np.uint8)[cells]
    return voted


def _street_light(scores: Scores) -> float:
    return next(one.iou or 0.0 for one in scores.classes if one.name == "street light")


def _better(scores: Sequence[Scores], plain: Sequence[float]) -> int:
    return sum(one.miou > usual for one, usual in zip(scores, plain, strict=True))
