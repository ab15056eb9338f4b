"""How far the annotation is: the counts behind `tool annotate status`."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

import numpy as np

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.masks import Encoding, mask_texts, read_mask
from annotate.paintings import read_index
from annotate.pull import PIXELS, Outcome, gather
from annotate.studio import embedded_or_configured
from annotate.workspace import Workspace


@dataclass(frozen=True)
class ClassCount:
    """How much of one class the hand masks show."""

    name: str
    paintings: int
    pixels: int
    share: float  # of the labelled pixels


@dataclass(frozen=True)
class Standing:
    """How far the annotation is."""

    server: str  # its address; empty: the embedded one does not run, and only the disk was looked at
    chosen: int  # paintings that a person annotates
    pulled: int  # masks in masks/hand
    annotated: int | None  # on the server; None where it was not asked
    left: int | None
    skipped: int | None
    drafts: int | None
    twice: tuple[str, ...]  # keys with more than one annotation
    minutes_left: float | None  # from the median time that an annotation took
    unlabelled: float  # share of the masks' pixels
    classes: tuple[ClassCount, ...]

    @property
    def unseen(self) -> list[str]:
        """Classes that no annotated painting shows."""
        return [one.name for one in self.classes if one.paintings == 0]

    def text(self) -> str:
        if self.annotated is None:
            lines = ["Label Studio does not run (tool annotate serve starts it); from the disk alone:"]
        else:
            lines = [
                f"{self.annotated} of {self.chosen} annotated, {self.left} left "
                f"({self.drafts} begun, {self.skipped} skipped)"
                + (f"; about {self.minutes_left:.0f} min more" if self.minutes_left else "")
            ]
        lines.append(
            f"{self.pulled} masks pulled" + (f", {self.unlabelled:.0%} unlabelled" if self.pulled else "")
        )
        if self.twice:
            lines.append(f"annotated more than once, the latest counts: {', '.join(self.twice)}")
        width = max(len(one.name) for one in self.classes)
        lines.append(f"{'class':<{width}}  paintings      pixels   share")
        for one in self.classes:
            lines.append(f"{one.name:<{width}}  {one.paintings:>9}  {one.pixels:>10}  {one.share:>5.1%}")
        if self.unseen and self.pulled:
            lines.append(f"no annotated painting shows: {', '.join(self.unseen)}")
        return "\n".join(lines)


def standing(workspace: Workspace) -> Standing:
    """Count what is annotated on the server and what the hand masks show. Starts no server.

    Raises:
        UserError: no list of paintings; or a server is configured and refuses or does not answer.
    """
    index = read_index(workspace)
    chosen = [one.key for one in index.values() if one.split == "hand"]
    masks = [key for key in workspace.keys_with_mask("hand") if key in index]
    pixels, paintings = _count(workspace, masks)
    labelled = sum(count for one, count in pixels.items() if one != UNLABELLED)
    classes = tuple(
        ClassCount(
            one.name,
            paintings.get(one.id, 0),
            pixels.get(one.id, 0),
            pixels.get(one.id, 0) / max(labelled, 1),
        )
        for one in workspace.settings().classes.classes
    )
    unlabelled = pixels.get(UNLABELLED, 0) / max(sum(pixels.values()), 1)
    studio = embedded_or_configured(workspace)
    if studio is None:
        return Standing("", len(chosen), len(masks), None, None, None, None, (), None, unlabelled, classes)
    try:
        works = [work for work in gather(studio.tasks(studio.project(workspace))) if work.key in index]
    finally:
        studio.close()
    outcomes = [work.outcome for work in works]
    skipped = outcomes.count(Outcome.SKIPPED)
    left = outcomes.count(Outcome.OPEN) + outcomes.count(Outcome.DRAFT)
    seconds = [
        work.submitted[-1].seconds for work in works if work.submitted and work.submitted[-1].seconds > 0
    ]
    minutes = statistics.median(seconds) * left / 60 if seconds else None
    return Standing(
        studio.url,
        len(chosen),
        len(masks),
        outcomes.count(None),
        left,
        skipped,
        outcomes.count(Outcome.DRAFT),
        tuple(work.key for work in works if len(work.submitted) > 1),
        minutes,
        unlabelled,
        classes,
    )


def _count(workspace: Workspace, keys: list[str]) -> tuple[dict[int, int], dict[int, int]]:
    """Pixels, and paintings, of each raw id over some hand masks."""
    pixels: dict[int, int] = {}
    paintings: dict[int, int] = {}
    for key in keys:
        for one, count in _pixels(workspace, key).items():
            pixels[one] = pixels.get(one, 0) + count
            paintings[one] = paintings.get(one, 0) + 1
    return pixels, paintings


def _pixels(workspace: Workspace, key: str) -> dict[int, int]:
    """Pixels of each raw id in one mask: as it says itself, or counted where it came from elsewhere."""
    path = workspace.mask("hand", key)
    try:
        said = json.loads(mask_texts(path)[PIXELS])
        return {int(one): int(count) for one, count in said.items()}
    except (KeyError, ValueError, AttributeError):
        pass
    except UserError:
        return {}  # damaged: the next pull writes it again
    ids, counts = np.unique(read_mask(path, Encoding.RAW, Encoding.RAW), return_counts=True)
    return {int(one): int(count) for one, count in zip(ids, counts, strict=True)}
