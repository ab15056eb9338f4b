"""The estimate of `tool segment evaluate` against the truth, in ten draws of 240 paintings and twenty of 80.

In each draw a quarter of the painter scenes (120 x 152 pixels) has hand masks, chosen at random: 60 of 240, as in the
painter benchmark, or 20 of 80. `evaluate` cross-validates on these in four folds, `pseudo-label` labels the others,
and `evaluate` says what mIoU it expects of them, with an interval for nine cases in ten. Then the masks that the painter
knows are taken out, and the pseudo-labels are scored against them. Beside stand what people otherwise go by: the plain
cross-validated mIoU, and for the pixel accuracy the mean confidence. The networks are small: MobileNetV3, 120 steps of
8 crops of 96 pixels. In place of downloaded weights they start from one network that learnt from 150 other scenes. All
in per cent. `rank`: Spearman's correlation of the ranking with each painting's true share of wrong pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from annotate.classes import ClassTable
from annotate.masks import Encoding, read_mask, write_mask
from annotate.paintings import scan, write_index
from annotate.workspace import Workspace
from demo.painter import paint
from segment.config import EvaluateConfig, LabelConfig, TrainConfig
from segment.evaluate import EvaluateResult, evaluate
from segment.label import REPORT, pseudo_label
from segment.model import WEIGHTS
from segment.train import train

COLLECTIONS = ((240, 10), (80, 20))  # paintings, draws
FOLDS, STEPS = 4, 120
SIZE = (120, 152)
LEARN = {"batch": 8, "crop": 96, "smallest_side": 0, "lr": 1.5e-3, "scale_low": 0.8, "scale_high": 1.5}
FOLDER = Path(tempfile.gettempdir()) / "impasto-bench-trust"  # kept: a run that was cut short goes on


def run() -> list[dict[str, object]]:
    """One row a draw, and one for each size of collection that sums up."""
    rows: list[dict[str, object]] = []
    for paintings, draws in COLLECTIONS:
        found = [one_draw(number, paintings) for number in range(draws)]
        rows += [*found, _sum_up(found)]
    return rows


def _sum_up(rows: list[dict[str, object]]) -> dict[str, object]:
    last: dict[str, object] = dict.fromkeys(rows[0], "")
    last["hand masks"], last["draw"] = rows[0]["hand masks"], "within 3 points"
    for name, true in (("estimate", "mIoU"), ("plain folds", "mIoU"), ("accuracy, estimate", "accuracy")):
        last[name] = f"{_close(rows, name, true)} of {len(rows)}"
    last["mean confidence"] = f"{_close(rows, 'mean confidence', 'accuracy')} of {len(rows)}"
    last["interval"] = f"{sum(row['inside'] == 'yes' for row in rows)} of {len(rows)} inside"
    return last


def one_draw(number: int, paintings: int) -> dict[str, object]:
    """Annotate, train, evaluate, label, evaluate again; then look at the truth."""
    workspace = Workspace(FOLDER / f"{paintings}-{number}")
    chosen = np.random.default_rng(number).permutation(paintings)[: paintings // 4].tolist()
    scenes(workspace, range(100_000 + number * paintings, 100_000 + (number + 1) * paintings), chosen)
    config = TrainConfig(init=str(start()), steps=STEPS, seed=number, save_every=STEPS, **LEARN)  # type: ignore[arg-type]
    train(workspace, config, "cpu")
    labelled = pseudo_label(workspace, LabelConfig(threshold=0.0), "cpu")
    workspace.save_report(REPORT, {"thresholds": labelled.thresholds})
    told = evaluate(workspace, EvaluateConfig(folds=FOLDS), "cpu")
    true = evaluate(workspace, EvaluateConfig(truth=workspace.root / "truth"), "cpu")
    assert told.estimate is not None
    miou, accuracy = told.estimate.miou, told.estimate.pixel_accuracy
    return {
        "hand masks": len(chosen),
        "draw": number,
        "mIoU": 100 * true.scores.miou,
        "estimate": 100 * miou.value,
        "interval": f"{100 * miou.low:.1f} to {100 * miou.high:.1f}",
        "inside": "yes" if miou.low <= true.scores.miou <= miou.high else "no",
        "plain folds": 100 * told.scores.miou,
        "accuracy": 100 * true.scores.pixel_accuracy,
        "accuracy, estimate": 100 * accuracy.value,
        "mean confidence": 100 * labelled.mean_confidence,
        "rank": _rank(workspace, told),
    }


def start() -> Path:
    """The weights that stand in for downloaded ones."""
    workspace = Workspace(FOLDER / "start")
    weights = workspace.model("deeplab") / WEIGHTS
    if weights.exists():
        return weights
    scenes(workspace, range(150), range(150))
    train(workspace, TrainConfig(init="none", steps=400, save_every=100, held_out=0.0, **LEARN), "cpu")  # type: ignore[arg-type]
    return weights


def scenes(workspace: Workspace, seeds: range, hand: Iterable[int]) -> None:
    """Paint some scenes; those whose place is in `hand` are annotated."""
    if workspace.index_file.exists():
        return
    chosen = set(hand)
    for place, seed in enumerate(seeds):
        scene = paint(seed, SIZE)
        path = workspace.root / "paintings" / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.painting).save(path)
        write_mask(workspace.root / "truth" / f"{place:03}.png", scene.ids, Encoding.RAW)
        if place in chosen:
            write_mask(workspace.mask("hand", f"{place:03}"), scene.ids, Encoding.RAW)
    write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)


def _rank(workspace: Workspace, told: EvaluateResult) -> float:
    """Spearman's correlation of the ranking with the true share of wrong pixels."""
    wrong = []
    for key in told.ranking:
        true = read_mask(workspace.root / "truth" / f"{key}.png", Encoding.RAW)
        said = read_mask(workspace.mask("pseudo", key), Encoding.RAW)
        wrong.append(float((true != said)[np.isin(true, ClassTable().ids)].mean()))
    order = np.argsort(np.argsort(wrong))
    return float(np.corrcoef(order, -np.arange(len(order)))[0, 1])


def _close(rows: list[dict[str, object]], name: str, true: str) -> int:
    return sum(abs(float(str(row[name])) - float(str(row[true]))) <= 3 for row in rows)
