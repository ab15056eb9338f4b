"""Settings of the annotation stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotate.options import setting


@dataclass(frozen=True)
class PushConfig:
    """Which paintings a person annotates, and where."""

    fraction: float | None = setting(
        None,
        "Share of the paintings that a person annotates; it may grow later, the earlier ones stay."
        "  [default: tool.toml's, 0.25 at first]",
        low=0.0,
        high=1.0,
    )
    strategy: str = setting(
        "spread",
        "How they are chosen: `spread` covers the collection's looks, `random` draws evenly, `all` takes each.",
        choices=("spread", "random", "all"),
    )
    seed: int | None = setting(None, "Seed of the draw.  [default: tool.toml's, 0 at first]", low=0)
    keys: Path | None = setting(
        None, "File with one key a line: exactly these are chosen, besides the earlier ones."
    )
    max_side: int | None = setting(
        None,
        "Longest side, in pixels, of what the browser gets; masks keep the painting's own size. 0 scales nothing."
        "  [default: tool.toml's, 2000 at first]",
        low=0,
    )
    predictions: bool = setting(
        False, "Attach the pseudo masks of the workspace, to be corrected rather than drawn."
    )
    regions: str = setting(
        "polygon",
        "Form of those: `polygon` has outlines to within a pixel, and keeps the editor fast; `brush` shows every "
        "pixel, and can be erased.",
        source="docs/bench-editor.md",
        choices=("brush", "polygon"),
    )
    url: str | None = setting(
        None,
        "Label Studio's address, or `embedded`.  [default: LABEL_STUDIO_URL, then tool.toml's, then embedded]",
    )

    def __post_init__(self) -> None:
        if self.keys is not None and (self.fraction is not None or self.strategy != PushConfig.strategy):
            raise ValueError("--keys chooses exactly what it lists: leave out --fraction and --strategy")


@dataclass(frozen=True)
class ReviewConfig:
    """How many of the model's labels a person looks at."""

    count: int = setting(20, "How many paintings shall lie in the queue.", low=1)
    regions: str = setting(
        PushConfig.regions,
        "Form of the pseudo masks: `polygon` has outlines to within a pixel, and keeps the editor fast; `brush` "
        "shows every pixel, and can be erased.",
        choices=("brush", "polygon"),
    )
    url: str | None = setting(
        None,
        "Label Studio's address, or `embedded`.  [default: LABEL_STUDIO_URL, then tool.toml's, then embedded]",
    )


@dataclass(frozen=True)
class PullConfig:
    """Where the annotations come from, and what counts where several people annotated a painting."""

    consensus: str = setting(
        "latest",
        "What counts where several people annotated one painting: the `latest` annotation, or at each pixel what "
        "the `majority` of them sees.",
        choices=("latest", "majority"),
    )

    url: str | None = setting(
        None,
        "Label Studio's address, or `embedded`.  [default: LABEL_STUDIO_URL, then tool.toml's, then embedded]",
    )
