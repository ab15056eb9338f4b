"""Several annotators of one painting: the class that most of them see, and how far they agree."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable

Counts = Counter[tuple[int, int]]  # pixels by (raw id that one annotator gave, raw id that the other gave)


@dataclass(frozen=True)
class ClassAgreement:
    """How far annotators agree on one class."""

    name: str
    iou: float | None  # intersection over union; None where nobody saw the class
    kappa: float | None  # Cohen's, of this class against all else


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree, over all pairs of annotators of a painting and all such paintings."""

    paintings: int
    pixels: int  # compared
    kappa: float | None  # Cohen's, over all classes and unlabelled
    classes: tuple[ClassAgreement, ...]


def majority(maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The class that most annotators gave each pixel; of as many votes, the class of the latest of them.

    Args:
        maps: (H, W) raw ids each, the latest last. Unlabelled is a vote like any other.
    """
    best = np.zeros(maps[0].shape, np.int32)
    winner = np.empty(maps[0].shape, np.uint8)
    for one in np.unique(np.concatenate([np.unique(ids) for ids in maps])):
        votes, latest = np.zeros_like(best), np.zeros_like(best)
        for place, ids in enumerate(maps, 1):
            seen = ids == one
            votes += seen
            latest[seen] = place
        weight = votes * (len(maps) + 1) + latest
        ahead = weight > best
        winner[ahead], best[ahead] = one, weight[ahead]
    return winner


def compare(maps: Sequence[NDArray[np.uint8]]) -> Counts:
    """Pixels by the two classes that each pair of annotators gave them.

    Args:
        maps: (H, W) raw ids of each annotator.
    """
    counts: Counts = Counter()
    for a, b in combinations(maps, 2):
        pairs, found = np.unique(a.astype(np.uint16) * 256 + b, return_counts=True)
        for pair, count in zip(pairs.tolist(), found.tolist(), strict=True):
            counts[pair // 256, pair % 256] += count
    return counts


def measure(counted: Iterable[Counts], classes: ClassTable) -> Agreement | None:
    """Agreement over some paintings; None where there are none."""
    paintings = list(counted)
    if not paintings:
        return None
    total = sum(paintings, Counts())
    pixels = total.total()
    ids = {one for pair in total for one in pair}
    first = {one: sum(count for pair, count in total.items() if pair[0] == one) for one in ids}
    second = {one: sum(count for pair, count in total.items() if pair[1] == one) for one in ids}
    chance = sum(first[one] * second[one] for one in ids) / pixels**2
    found = []
    for one in classes.classes:
        a, b, both = first.get(one.id, 0), second.get(one.id, 0), total[one.id, one.id]
        union = a + b - both
        expected = (a * b + (pixels - a) * (pixels - b)) / pixels**2
        same = (pixels - union + both) / pixels
        found.append(ClassAgreement(one.name, both / union if union else None, _kappa(same, expected)))
    same = sum(total[one, one] for one in ids) / pixels
    return Agreement(len(paintings), pixels, _kappa(same, chance), tuple(found))


def to_text(counts: Counts) -> str:
    """Counts as a text chunk of a mask."""
    return json.dumps({f"{a} {b}": count for (a, b), count in sorted(counts.items())})


def from_text(text: str) -> Counts:
    """Back from a text chunk.

    Raises:
        ValueError: not such a text.
    """
    rows = json.loads(text)
    if not isinstance(rows, Mapping):
        raise ValueError("not a table of counts")
    counts: Counts = Counter()
    for pair, count in rows.items():
        a, b = pair.split()
        counts[int(a), int(b)] = int(count)
    return counts


def _kappa(same: float, expected: float) -> float | None:
    """Cohen's kappa; None where chance alone agrees everywhere.

    Source: Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    return None if math.isclose(expected, 1) else (same - expected) / (1 - expected)
