"""How far the annotation is: the counts behind `tool annotate status`."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from annotate.access import embedded_or_configured
from annotate.agreement import Agreement, from_text, measure
from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.listing import list_tasks
from annotate.masks import Encoding, mask_texts, read_mask
from annotate.paintings import Painting, read_index
from annotate.pull import COMPARED, PIXELS, Outcome, Work, fits, gather, some
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
    left: int | None  # begun or not
    skipped: int | None
    drafts: int | None  # begun, not submitted
    review: int | None  # of those left: pre-annotated paintings that `review` sent
    twice: tuple[str, ...]  # keys with more than one annotation
    minutes_left: float | None  # from the median time that an annotation took
    unlabelled: float  # share of the masks' pixels
    unseen: tuple[str, ...]  # classes that no annotated painting shows
    classes: tuple[ClassCount, ...]
    agreement: Agreement | None  # of several annotators; None where no painting has some

    def text(self) -> str:
        if self.annotated is None:
            lines = ["Label Studio does not run (tool annotate serve starts it); from the disk alone:"]
        else:
            more = f", {self.review} of them for review" if self.review else ""
            lines = [
                f"{self.annotated} of {self.chosen} annotated, {self.left} left "
                f"({self.drafts} begun, {self.skipped} skipped{more})"
                + (f"; about {self.minutes_left:.0f} min more" if self.minutes_left else "")
            ]
        lines.append(
            f"{self.pulled} masks pulled" + (f", {self.unlabelled:.0%} unlabelled" if self.pulled else "")
        )
        if self.twice:
            lines.append(f"annotated more than once: {some(self.twice)}")
        lines += self._table()
        if self.unseen and self.pulled:
            lines.append(f"no annotated painting shows: {', '.join(self.unseen)}")
        if self.agreement:
            count = self.agreement.paintings
            lines.append(
                f"{count} painting{'s' if count > 1 else ''} annotated by several people; "
                f"Cohen's kappa over all classes {_figure(self.agreement.kappa).strip()}"
            )
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """The classes; where several people annotated a painting, how far they agree on each."""
        width = max(len(one.name) for one in self.classes)
        agreed = self.agreement.classes if self.agreement else ()
        lines = [f"{'class':<{width}}  paintings      pixels   share" + ("    IoU  kappa" if agreed else "")]
        for place, one in enumerate(self.classes):
            line = f"{one.name:<{width}}  {one.paintings:>9}  {one.pixels:>10}  {one.share:>5.1%}"
            if agreed:
                line += f"  {_figure(agreed[place].iou)}  {_figure(agreed[place].kappa)}"
            lines.append(line)
        return lines


def standing(workspace: Workspace) -> Standing:
    """Count what is annotated on the server and what the hand masks show. Starts no server.

    Raises:
        UserError: no list of paintings; or a server is configured and refuses or does not answer.
    """
    index = read_index(workspace)
    chosen = {key for key, one in index.items() if one.split == "hand"}
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
    server, works = _works(workspace, index)
    outcomes = Counter(work.outcome for work in works or ())
    sent = {work.key for work in works or ()}
    left = outcomes[Outcome.OPEN] + outcomes[Outcome.DRAFT] + len(chosen - sent)
    minutes = _minutes(works or [], left)
    open_ = {work.key for work in works or () if work.outcome in (Outcome.OPEN, Outcome.DRAFT)}
    asked = works is not None
    return Standing(
        server=server,
        chosen=len(chosen | sent),
        pulled=len(masks),
        annotated=outcomes[None] if asked else None,
        left=left if asked else None,
        skipped=outcomes[Outcome.SKIPPED] if asked else None,
        drafts=outcomes[Outcome.DRAFT] if asked else None,
        review=len(open_ - chosen) if asked else None,
        twice=tuple(work.key for work in works or () if len(work.submitted) > 1),
        minutes_left=minutes,
        unlabelled=pixels.get(UNLABELLED, 0) / max(sum(pixels.values()), 1),
        unseen=tuple(one.name for one in classes if one.paintings == 0),
        classes=classes,
        agreement=annotators_agreement(workspace, masks),
    )


def annotators_agreement(workspace: Workspace, keys: Iterable[str]) -> Agreement | None:
    """How far the annotators of some hand masks agree, as the pull that wrote them found; no pixel is read."""
    found = []
    for key in keys:
        with contextlib.suppress(UserError, KeyError, ValueError):  # damaged: the next pull writes it again
            found.append(from_text(mask_texts(workspace.mask("hand", key))[COMPARED]))
    return measure(found, workspace.settings().classes)


def _works(workspace: Workspace, index: Mapping[str, Painting]) -> tuple[str, list[Work] | None]:
    """The server, and what is there of our paintings; an embedded server that does not run is not asked."""
    studio = embedded_or_configured(workspace)
    if studio is None:
        return "", None
    try:
        tasks = list_tasks(studio, studio.project(workspace), workspace)
        works = gather(task for task in tasks if fits(task, index))
        return studio.url, [work for work in works if work.key in index]
    finally:
        studio.close()


def _minutes(works: Iterable[Work], left: int) -> float | None:
    """How long the rest takes, if each takes the median of what annotators took so far."""
    taken = [work.submitted[-1].seconds for work in works if work.submitted]
    taken = [seconds for seconds in taken if seconds > 0]
    return statistics.median(taken) * left / 60 if taken else None


def _figure(value: float | None) -> str:
    return "    -" if value is None else f"{value:>5.2f}"


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
