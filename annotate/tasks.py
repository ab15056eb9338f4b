"""What a server's project holds: tasks, what was annotated and predicted, and what is on its way there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annotate import answers


@dataclass(frozen=True)
class Annotation:
    """One annotation of a task, without what was drawn."""

    id: int
    updated_at: str  # ISO 8601, UTC: sorts as text
    cancelled: bool  # the annotator pressed Skip
    seconds: float  # lead time
    annotator: int


@dataclass(frozen=True)
class Prediction:
    """A pre-annotation of a task, without its regions."""

    id: int
    model: str
    score: float


@dataclass(frozen=True)
class Guess:
    """A pre-annotation on its way to the server."""

    task: int
    regions: Sequence[Mapping[str, Any]]
    score: float  # the lower, the less sure


@dataclass(frozen=True)
class Task:
    """One task of the project. Key, digest and size come from the server: not trusted."""

    id: int
    key: str  # empty: not one of ours
    sha256: str
    annotations: tuple[Annotation, ...]
    drafts: int
    predictions: tuple[Prediction, ...]
    size: tuple[int, int] | None  # (H, W) of the image on the server; None: the painting's own
    updated_at: str = ""  # moves with every annotation and prediction; not with drafts
    damage: str = ""  # what is wrong with the server's answer about it; nothing else is known then

    @property
    def untouched(self) -> bool:
        """Whether it can go without a loss."""
        return not self.annotations and not self.drafts and not self.damage


@dataclass(frozen=True)
class Filter:
    """A condition on the tasks of a listing, as the server's data manager has it."""

    column: str
    operator: str
    kind: str
    value: Any

    def item(self) -> dict[str, Any]:
        column = f"filter:tasks:{self.column}"
        return {"filter": column, "operator": self.operator, "type": self.kind, "value": self.value}


@dataclass(frozen=True)
class Upload:
    """A painting on its way to the server."""

    key: str
    sha256: str
    content: bytes
    suffix: str  # with the dot
    size: tuple[int, int]  # (H, W) of this image


def read_task(row: Mapping[str, Any]) -> Task:
    data = row.get("data")
    key, digest = (data.get("key"), data.get("sha256")) if isinstance(data, Mapping) else (None, None)
    key, digest = key if isinstance(key, str) else "", digest if isinstance(digest, str) else ""
    number = 0
    try:
        number = answers.number(row, "id")
        annotations = tuple(
            Annotation(
                answers.number(one, "id"),
                answers.text(one, "updated_at"),
                bool(one.get("was_cancelled")),
                answers.amount(one, "lead_time"),
                0 if one.get("completed_by") is None else answers.number(one, "completed_by"),
            )
            for one in answers.objects(row, "annotations")
        )
        predictions = tuple(
            Prediction(
                answers.number(one, "id"), str(one.get("model_version"))[:200], answers.amount(one, "score")
            )
            for one in answers.objects(row, "predictions")
        )
        drafts = len(answers.objects(row, "drafts"))
        moved = answers.text(row, "updated_at")
        return Task(number, key, digest, annotations, drafts, predictions, _size(data), moved)
    except ValueError as error:
        damage = f"an answer that Label Studio would not give: {error}"
        return Task(number, key, digest, (), 0, (), None, damage=damage)


def _size(data: Any) -> tuple[int, int] | None:
    height, width = (data.get("height"), data.get("width")) if isinstance(data, Mapping) else (None, None)
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        return None
    return height, width
