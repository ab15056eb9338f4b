"""The classes of a workspace: names, COCO-Stuff ids, colours and which one lies on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.errors import UserError

LONGEST_NAME = 200  # characters of a class's name, and of a label that is looked at
UNLABELLED = 255  # in raw masks; the `ignore_index` of every loss and figure


@dataclass(frozen=True)
class PaintingClass:
    """One class: its name in Label Studio, its raw COCO-Stuff id (0..181), colour, and place in overlaps."""

    name: str
    id: int
    color: str  # "#rrggbb"
    order: int  # where regions overlap, the higher order is seen

    @property
    def rgb(self) -> tuple[int, int, int]:
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


DEFAULT_CLASSES = (
    PaintingClass("road", 148, "#b0703c", 2),
    PaintingClass("water", 177, "#2f7fd1", 1),
    PaintingClass("trees", 168, "#3f9b4b", 4),
    PaintingClass("sky", 156, "#23306e", 0),
    PaintingClass("buildings", 95, "#a8557f", 3),
    PaintingClass("street light", 129, "#ffd23f", 5),
)


@dataclass(frozen=True)
class ClassTable:
    """The classes in the user's order. Row k of the table is class index k of every model trained on it."""

    classes: tuple[PaintingClass, ...] = DEFAULT_CLASSES

    def __post_init__(self) -> None:
        if not self.classes:
            raise UserError("tool.toml: no classes; add a [[classes]] table with name, id, color and order")
        for one in self.classes:
            if not 1 <= len(one.name.strip()) <= LONGEST_NAME:
                raise UserError(
                    f"tool.toml: class name {one.name[:40]!r}: give it 1 to {LONGEST_NAME} characters"
                )
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", one.color):
                raise UserError(f"tool.toml: class {one.name!r}: color {one.color!r} is not like '#3f9b4b'")
            if not 0 <= one.id <= 181:
                raise UserError(
                    f"tool.toml: class {one.name!r}: id {one.id} is not a COCO-Stuff id (0 to 181)"
                )
        for what in ("name", "id", "order"):
            values = [getattr(one, what) for one in self.classes]
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise UserError(f"tool.toml: two classes share the {what} {twice.pop()!r}; give each its own")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.classes]

    @property
    def ids(self) -> list[int]:
        return [one.id for one in self.classes]

    @cached_property
    def by_name(self) -> Mapping[str, PaintingClass]:
        return {one.name: one for one in self.classes}

    @cached_property
    def by_id(self) -> Mapping[int, PaintingClass]:
        return {one.id: one for one in self.classes}

    def to_index(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Raw ids (any shape) to class indices 0..len-1; unlabelled stays 255.

        Raises:
            UserError: an id that is not one of the classes; the line names it.
        """
        lookup = np.full(256, 254, np.uint8)
        lookup[self.ids] = np.arange(len(self))
        lookup[UNLABELLED] = UNLABELLED
        indices: NDArray[np.uint8] = lookup[raw]
        if (indices == 254).any():
            stray = sorted(set(np.unique(raw[indices == 254]).tolist()))
            raise UserError(
                f"mask ids {stray} are not in tool.toml (it has {sorted(self.ids)}); add the class there"
            )
        return indices

    def to_raw(self, indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class indices (any shape) to raw ids; 255 stays 255."""
        lookup = np.full(256, UNLABELLED, np.uint8)
        lookup[: len(self)] = self.ids
        raw: NDArray[np.uint8] = lookup[indices]
        return raw

    def colours(self) -> NDArray[np.uint8]:
        """(256, 3) colour of every raw id; ids without a class are grey."""
        table = np.full((256, 3), 128, np.uint8)
        for one in self.classes:
            table[one.id] = one.rgb
        return table

    def as_list(self) -> list[dict[str, Any]]:
        return [{"name": c.name, "id": c.id, "color": c.color, "order": c.order} for c in self.classes]

    @staticmethod
    def from_list(rows: Sequence[Mapping[str, Any]]) -> ClassTable:
        """Build a table from `[[classes]]` rows of tool.toml or a checkpoint's config.

        Raises:
            UserError: a row lacks a key, or its value has another type.
        """
        built = []
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise UserError(f"tool.toml: class {number} is {row!r}; write it as [[classes]] table")
            for key, kind in (("name", str), ("id", int), ("color", str), ("order", int)):
                if not isinstance(row.get(key), kind):
                    raise UserError(
                        f"tool.toml: class {number} needs {key} ({kind.__name__}), got {row.get(key)!r}"
                    )
            built.append(
                PaintingClass(str(row["name"]), int(row["id"]), str(row["color"]), int(row["order"]))
            )
        return ClassTable(tuple(built))
