"""Settings of the segment stage. Torch-free; each field is an option, and is saved with the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotate.options import setting

ARCHITECTURES = ("mobilenet_v3_large", "resnet50", "resnet101")


@dataclass(frozen=True)
class TrainConfig:
    """How a DeepLabV3 is trained on the hand masks."""

    architecture: str = setting(
        "mobilenet_v3_large", "DeepLabV3's backbone; the first is the one for CPUs.", choices=ARCHITECTURES
    )
    init: str = setting("coco", "Where the weights start: imagenet, coco, none, or a file of weights.")
    steps: int = setting(1000, "Optimizer steps.", low=1)
    batch: int = setting(8, "Crops a step.", low=1)
    crop: int = setting(384, "Side of the square crops, in pixels.", low=32)
    smallest_side: int = setting(
        512, "Scale paintings so that their smaller side has this many pixels; 0 keeps them.", low=0
    )
    lr: float = setting(1e-3, "Learning rate of AdamW, after the warm-up.", low=0.0)
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", low=0.0)
    warmup: float = setting(0.1, "Share of the steps in which the learning rate rises.", low=0.0, high=1.0)
    power: float = setting(
        0.9,
        "The learning rate falls as (1 - step / steps) to this power.",
        low=0.0,
        source="arXiv:1706.05587",
    )
    aux: float = setting(
        0.5, "Weight of the auxiliary head's loss.", low=0.0, source="torchvision references/segmentation"
    )
    scale_low: float = setting(0.5, "Smallest random scale of a crop.", low=0.1)
    scale_high: float = setting(2.0, "Largest random scale of a crop.", low=0.1)
    colour: float = setting(0.4, "Strength of the random colour changes.", low=0.0, high=1.0)
    flip: bool = setting(True, "Mirror every second crop.")
    rare: float = setting(
        0.5, "Share of the crops drawn around a class chosen evenly, however rare.", low=0.0, high=1.0
    )
    balance: float = setting(
        0.5, "Class weights are 1 / frequency to this power; 0 weighs all pixels alike.", low=0.0, high=1.0
    )
    held_out: float = setting(
        0.1, "Share of the hand masks kept for validation, from 20 masks on.", low=0.0, high=0.5
    )
    save_every: int = setting(
        50, "Steps between two saved states; a killed run goes on from the last.", low=1
    )
    seed: int = setting(0, "Start of all random numbers.")
    workers: int = setting(0, "Processes that prepare crops; 0 prepares them in the training process.", low=0)

    def __post_init__(self) -> None:
        if self.scale_low > self.scale_high:
            raise ValueError(f"--scale-low {self.scale_low} is above --scale-high {self.scale_high}")


@dataclass(frozen=True)
class LabelConfig:
    """How the model labels the other paintings."""

    flip: bool = setting(True, "Average with the mirrored painting.")
    scales: str = setting("1", "Scales to average over, with commas between, such as 0.75,1,1.25.")
    threshold: float = setting(
        0.0, "Pixels with less confidence than this become unlabelled (255).", low=0.0, high=1.0
    )
    tile: int = setting(
        1024, "Paintings with a longer side than this are labelled in overlapping tiles.", low=128
    )

    @property
    def factors(self) -> tuple[float, ...]:
        """The scales as numbers."""
        return tuple(float(part) for part in self.scales.split(","))

    def __post_init__(self) -> None:
        try:
            good = all(0.1 <= factor <= 4 for factor in self.factors)
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"--scales {self.scales!r}: give numbers from 0.1 to 4 with commas between")


@dataclass(frozen=True)
class EvaluateConfig:
    """How well the model does, by cross-validation or against true masks."""

    folds: int = setting(5, "Parts of the hand set; each is predicted by a model of the others.", low=2)
    truth: Path | None = setting(
        None, "Folder of true masks KEY.png: score the pseudo masks against them instead of cross-validating."
    )
    encoding: str | None = setting(
        None, "What true masks without a text chunk hold.", choices=("raw", "shifted")
    )


@dataclass(frozen=True)
class ConvertConfig:
    """How the shifted masks are written."""

    n_labels: int = setting(
        182,
        "Channels of the generator's one-hot masks.",
        low=2,
        high=256,
        source="taming-transformers, configs/sflckr_cond_stage.yaml",
    )
    held_out: float = setting(0.1, "Share of the paintings listed in val.txt.", low=0.0, high=0.9)
    seed: int = setting(0, "Which ones these are.")
