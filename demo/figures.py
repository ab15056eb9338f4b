"""What people call the steps of the flow and their figures; how a figure is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = {  # name of a report in reports/ -> what people call the step
    "demo-paint": "Paint the scenes",
    "annotate-push": "Push to Label Studio",
    "demo-annotate": "Annotate (stand-in)",
    "annotate-pull": "Pull the masks",
    "segment-train": "Train the DeepLabV3",
    "segment-pseudo-label": "Pseudo-label the rest",
    "segment-evaluate": "Evaluate the labels",
    "segment-convert": "Convert to shifted masks",
    "generate-train-painting": "Train the painting codes",
    "generate-train-mask": "Train the mask codes",
    "generate-train-transformer": "Train the transformer",
    "generate-sample": "Sample new paintings",
}
_LABELS = {  # figures whose name alone does not say it
    "chosen": "to annotate",
    "added": "sent",
    "there": "there before",
    "left_out": "left out",
    "twice": "annotated twice",
    "skipped": "skipped by the annotator",
    "draft": "begun, not submitted",
    "open": "not begun",
    "miou": "mIoU",
    "labelled": "labelled now",
    "hand": "from a hand",
    "pseudo": "from the model",
    "without": "without a mask",
    "used": "codebook rows used",
    "codebook_size": "codebook rows",
    "bits_per_token": "bits a token",
    "held_out_bits_per_token": "bits a token, held out",
    "tokens_a_second": "tokens a second",
    "held_out": "held out",
    "model_gb": "GB of the model",
}
_SHARES = {"miou", "pixel_accuracy", "coverage", "mean_confidence", "unlabelled", "right"}
_QUIET = {  # figures that are 0 when all is well, or that the report shows elsewhere
    "left_out",
    "twice",
    "skipped",
    "draft",
    "open",
    "failed",
    "changed",
    "there",
    "removed",
    "without",
    "unlabelled",
    "unchanged",
}
_ELSEWHERE = {"seconds", "trained", "model", "url", "method"}


def readable(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of one step that fit in a line, as (label, value): numbers and short words."""
    plain = []
    for name, value in figures.items():
        if name in _ELSEWHERE or (name in _QUIET and not value):
            continue
        shown = number(name, value)
        if shown is not None:
            plain.append((_LABELS.get(name, name.replace("_", " ")), shown))
    return plain


def number(name: str, value: Any) -> str | None:
    """One figure with as many digits as say something; None for what is not a figure."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if name in _SHARES:
            return f"{100 * value:.1f} %"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, str) and 0 < len(value) <= 24 and "/" not in value:
        return value
    return None
