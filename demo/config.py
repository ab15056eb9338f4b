"""What `tool demo` can be told. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from annotate.options import setting


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo."""

    paintings: int = setting(40, "Scenes to paint.", low=8)
    annotated: int = setting(10, "Of them annotated by the stand-in.", low=2)
    samples: int = setting(2, "New paintings from each of the four masks.", low=1)
    seed: int = setting(0, "Seed of the first scene, and of every draw.", low=0)
    keep_server: bool = setting(False, "Leave Label Studio running, to look around in it.")

    def __post_init__(self) -> None:
        if self.annotated >= self.paintings:
            raise ValueError(f"--annotated {self.annotated}: fewer than --paintings {self.paintings}")
