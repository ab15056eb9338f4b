"""What `tool generate sample` can be told. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from annotate.options import setting


@dataclass(frozen=True)
class SampleConfig:
    """Settings of one call of the sampler."""

    mask: str = setting("", "Mask to paint from: a PNG, the name of a composition, or the key of a painting.")
    encoding: str | None = setting(
        None, "What a foreign PNG holds, that does not say it.", choices=("raw", "shifted")
    )
    size: str | None = setting(
        None, "Canvas HxW in pixels: extends or cuts the composition, never scales it."
    )
    count: int = setting(1, "How many paintings.", low=1)
    temperature: float = setting(
        0.7, "Divides the logits: lower is calmer.", low=0.01, source="the seed document's sampler"
    )
    guidance: float = setting(
        1.0,
        "Leads away from what would be painted without a mask: 1 not at all, 2 twice as far; takes twice the time.",
        low=0.0,
        high=100.0,
        source="Ho & Salimans 2021, classifier-free guidance",
    )
    top_k: int = setting(10, "Tokens that may be drawn.", low=1, source="the seed document's sampler")
    seed: int = setting(0, "Start of the random numbers.", low=0, high=2**63 - 1)
    stride: int = setting(
        8,
        "1: every token in its own window, as the reference; 8: a block a window, much faster.",
        choices=(1, 8),
    )
    precision: str = setting(
        "float32",
        "Of the transformer: bfloat16 is quicker where the hardware has it, int8 (CPU only) the quickest.",
        choices=("float32", "bfloat16", "int8"),
    )
    out: Path | None = setting(None, "Folder for the paintings; samples/ of the workspace without.")
    from_: str = setting(
        "",
        "Painting to keep: a file, or the key of one. Only --repaint, or what --mask changes, is painted anew.",
    )
    repaint: tuple[str, ...] = setting(
        (),
        "Part of --from to paint anew: a class, a box TOP,LEFT,BOTTOM,RIGHT in pixels or percent, or a PNG that "
        "is not black there; may be given more than once.",
    )
    recipe: Path | None = setting(
        None, "Paint the painting of this recipe again: a sampled PNG, or the JSON beside it."
    )
    preview: int = setting(0, "Write the canvas so far every so many tokens; 0 never.", low=0)
    check: bool = setting(True, "Say where the mask departs from the workspace's own paintings.")
    save_tokens: bool = setting(False, "Write the token grid as .npy beside each painting.")

    def __post_init__(self) -> None:
        for name in ("temperature", "guidance"):
            if not math.isfinite(getattr(self, name)):  # a recipe can say so, options cannot
                raise ValueError(f"--{name} {getattr(self, name)}: a number, such as 0.7")
        if self.stride not in (1, 8):
            raise ValueError(f"--stride {self.stride}: 1 or 8")
        if self.repaint and not self.from_:
            raise ValueError("--repaint: needs --from, the painting to keep")
        if not (self.mask or self.from_ or self.recipe):
            raise ValueError(
                "--mask: give a PNG, a composition, or the key of a painting; `tool status` shows one"
            )
