"""The evaluation as one HTML file: figures, reconstructions, compositions, and the nearest neighbours side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.page import cards, colour, duration, legend, page, pictures, section, shrink, table
from generate.evaluation import EvaluateResult, Fidelity
from generate.originality import Neighbour

ROWS = 12  # of each kind of picture
BESIDE = 6  # crops in a row: three pairs
WIDTH = 420  # pixels of a picture, at most

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Composition:
    """A new painting, what was asked for, and what is seen in it."""

    name: str
    asked: Pixels  # (H, W) raw ids
    original: Pixels  # (H, W, 3) the painting whose mask it is
    painted: Pixels  # (H, W, 3)
    seen: Pixels | None  # (H, W) raw ids; None without a DeepLab


@dataclass(frozen=True)
class Pair:
    """A new painting's nearest crop, beside the crop learnt from that it is nearest to."""

    found: Neighbour
    painted: Pixels  # (c, c, 3)
    learnt: Pixels  # (c, c, 3)


def build(
    result: EvaluateResult,
    classes: ClassTable,
    compositions: Sequence[Composition],
    rebuilt: Sequence[tuple[Pixels, Pixels]],
    pairs: Sequence[Pair],
) -> str:
    """The page.

    Args:
        rebuilt: held-out paintings (H, W, 3), and the same through the painting codes.
        pairs: one for each new painting, nearest first.
    """
    sections = [
        _figures(result),
        _compositions(result, classes, compositions),
        _originality(result, pairs),
        _wasserstein(result),
        _reconstruction(result, rebuilt),
    ]
    intro = (
        f"{result.samples} new paintings from held-out masks, {result.reconstruction.paintings} held-out "
        f"paintings; measured in {duration(result.seconds)}."
    )
    return page("How good the generator is", intro, sections)


def _figures(result: EvaluateResult) -> str:
    likely, near = result.likelihood, result.originality
    figures = {
        "bits a token, held out": f"{likely.bits_per_token:.2f}",
        "the same without a mask": f"{likely.without_mask:.2f}",
        "PSNR of reconstructions, dB": f"{result.reconstruction.psnr:.1f}",
        "SSIM of reconstructions": f"{result.reconstruction.ssim:.3f}",
        "mIoU of masks through their codes": f"{result.masks.miou:.3f}",
    }
    if result.reconstruction.lpips is not None:
        figures["LPIPS of reconstructions"] = f"{result.reconstruction.lpips:.3f}"
    if result.fidelity is not None:
        figures["mIoU of new paintings with their masks"] = f"{result.fidelity.samples.miou:.3f}"
        figures["mIoU of the real paintings"] = f"{result.fidelity.paintings.miou:.3f}"
    figures["copies among the new paintings"] = str(len(near.copies))
    rows = [
        (name, one.used, one.rows, round(one.perplexity))
        for name, one in (("paintings", result.painting_codebook), ("masks", result.mask_codebook))
    ]
    use = table(("codebook of the", "rows used", "rows", "perplexity"), rows)
    return section("At a glance", "", cards(figures), use)


def _compositions(result: EvaluateResult, classes: ClassTable, shown: Sequence[Composition]) -> str:
    parts = [legend(classes)]
    text = "Each new painting is made from the mask of a painting that was not learnt from."
    if result.fidelity is not None:
        text += " " + _who_labelled(result.fidelity)
        real = {one.name: one.iou for one in result.fidelity.paintings.classes}
        rows = [(one.name, one.iou, real[one.name]) for one in result.fidelity.samples.classes]
        parts.append(table(("class", "IoU in new paintings", "IoU in the real ones"), rows))
    for one in shown[:ROWS]:
        cells = [("asked for", colour(one.asked, classes)), (one.name, one.painted)]
        if one.seen is not None:
            cells.append(("what the DeepLab sees in it", colour(one.seen, classes)))
        cells.append(("the painting that the mask is of", one.original))
        parts.append(pictures(*((text, shrink(pixels, WIDTH)) for text, pixels in cells), wrap=True))
    return section("Do they show what was asked for", text, *parts)


def _who_labelled(fidelity: Fidelity) -> str:
    told = (
        f"The DeepLab finds {fidelity.samples.miou:.3f} (mIoU) of the masks again in the new paintings and "
    )
    told += f"{fidelity.paintings.miou:.3f} in the real ones."
    if fidelity.labelled_by_it:
        told += (
            f" {fidelity.labelled_by_it} of the masks are its own labels, about which it agrees with itself: "
            "the second figure is too good. --truth FOLDER measures with true masks."
        )
    return told


def _originality(result: EvaluateResult, pairs: Sequence[Pair]) -> str:
    near = result.originality
    limit = near.threshold
    text = (
        "The crop of each new painting that lies nearest to what was learnt from, beside what it is nearest to; the "
        "nearest first. The distance is relative to the crops' contrast: 0 is the same, 1.4 nothing in common. "
        f"Copies, as the codes paint them, lie at {limit.copies:.2f}; the nearest crop of a held-out painting at "
        f"{limit.held_out:.2f}; below {limit.value:.2f} a new painting is flagged."
    )
    if not limit.tells_apart:
        text += (
            " The codes blur so much that copies cannot be told from paintings never seen: train them longer."
        )
    parts = [
        table(
            ("nearest crop at", "lowest", "median", "highest"),
            [(name, *_spread(some)) for name, some in _distances(result)],
        )
    ]
    cells: list[tuple[str, Pixels]] = []
    for one in pairs[:ROWS]:
        spot, close = one.found.crop, one.found.nearest
        flag = " - COPY" if spot.key in near.copies else ""
        mirrored = ", mirrored" if close.mirrored else ""
        cells += [
            (f"{spot.key} at {spot.top}, {spot.left}: distance {one.found.distance:.2f}{flag}", one.painted),
            (f"{close.key} at {close.top}, {close.left}{mirrored}", one.learnt),
        ]
    parts += [pictures(*cells[n : n + BESIDE], wrap=True) for n in range(0, len(cells), BESIDE)]
    return section("Are they new", text, *parts)


def _distances(result: EvaluateResult) -> list[tuple[str, list[float]]]:
    near = result.originality
    return [
        ("new paintings", list(near.samples.values())),
        ("held-out paintings", list(near.held_out.values())),
    ]


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}"


def _wasserstein(result: EvaluateResult) -> str:
    text = (
        "Sliced Wasserstein distance of 7 x 7 patches to those of the paintings learnt from, for each band of a "
        "Laplacian pyramid, the finest first. A set lies at 0 from itself, and at about 0.03 from another of the same "
        "kind, by the draw of the patches alone. What the codes lose stands in the last row."
    )
    bands = max(len(one) for one in result.wasserstein.values())
    headers = ("", *(f"band {n + 1}" for n in range(bands)), "mean")
    rows = [
        (name, *(f"{one:.3f}" for one in some), f"{np.mean(some):.3f}")
        for name, some in result.wasserstein.items()
    ]
    return section("Are their strokes alike", text, table(headers, rows))


def _reconstruction(result: EvaluateResult, rebuilt: Sequence[tuple[Pixels, Pixels]]) -> str:
    text = "Held-out paintings, and what the painting codes make of them: no new painting can be finer."
    parts = [
        pictures(("painting", shrink(a, WIDTH)), ("through the codes", shrink(b, WIDTH)))
        for a, b in rebuilt[: ROWS // 3]
    ]
    masks = "Of held-out masks, what the mask codes keep: a class that they lose cannot be composed with."
    kept = table(("class", "IoU through the codes"), [(one.name, one.iou) for one in result.masks.classes])
    return section("What the codes keep", text, *parts) + section("What the mask codes keep", masks, kept)
