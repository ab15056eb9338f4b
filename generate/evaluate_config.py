"""What `tool generate evaluate` can be told. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotate.options import setting


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is measured, and against what."""

    masks: int = setting(8, "Held-out masks to paint from, at most.", low=1)
    samples: int = setting(1, "New paintings from each.", low=1)
    truth: Path | None = setting(
        None, "Folder of true masks KEY.png to paint from and to compare with, instead of masks/shifted."
    )
    encoding: str | None = setting(
        None, "What true masks without a text chunk hold.", choices=("raw", "shifted")
    )
    smallest_side: int | None = setting(
        None, "Scale the paintings' smallest side to this; without, as the transformer was trained.", low=0
    )
    perceptual: str = setting("auto", "VGG16 weights for LPIPS: a file, auto, fetch or none, as in training.")
    temperature: float = setting(0.7, "Of the new paintings.", low=0.01)
    top_k: int = setting(10, "Tokens that may be drawn for them.", low=1)
    guidance: float = setting(
        1.0, "How far they are led towards their masks, as in sampling.", low=0.0, high=100.0
    )
    seed: int = setting(0, "Start of the random numbers.", low=0, high=2**31)
