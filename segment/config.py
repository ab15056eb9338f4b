"""Settings of the segment stage. Torch-free; each field is an option, and is saved with the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotate.options import setting

ARCHITECTURES = ("mobilenet_v3_large", "resnet50", "resnet101")
FIRST_WEIGHTS = ("imagenet", "coco", "none")  # any other --init is a file


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
    dice: float = setting(
        0.0,
        "Weight of the dice loss, which counts a thin class like a broad one.",
        low=0.0,
        source="arXiv:1606.04797",
    )
    ema: float = setting(
        0.99,
        "Each step the model kept moves by 1 minus this towards the model in training.",
        low=0.0,
        high=1.0,
    )
    rounds: int = setting(
        0,
        "Times that the model labels the other paintings and learns on from them too; 0: hand masks only.",
        low=0,
        source="arXiv:2106.05095",
    )
    machine: float = setting(
        0.5, "Share of a batch cut from machine-labelled paintings, in these rounds.", low=0.0, high=0.5
    )
    machine_weight: float = setting(
        0.5, "Weight of a machine-labelled pixel in the loss; one labelled by hand has 1.", low=0.0, high=1.0
    )
    sure: float = setting(
        0.0, "Machine-labelled pixels with less confidence than this are not learnt from.", low=0.0, high=1.0
    )
    mix: float = setting(
        0.5, "Share of the machine-labelled crops into which a piece of another is pasted.", low=0.0, high=1.0
    )
    consistency: bool = setting(
        False,
        "In these rounds the running average labels each crop anew, as it is before its colours are changed.",
        source="arXiv:2208.09910",
    )
    held_out: float = setting(
        0.1, "Share of the hand masks kept for validation, from 20 masks on.", low=0.0, high=0.5
    )
    save_every: int = setting(
        50, "Steps between two saved states; a killed run goes on from the last.", low=1
    )
    patience: int = setting(
        0,
        "Stop when this many saved states brought no better mIoU on the held-out masks; 0 never stops early.",
        low=0,
    )
    devices: int = setting(1, "GPUs, or processes on CPUs, on each machine.", low=1)
    nodes: int = setting(1, "Machines; start the command on each by torchrun or SLURM.", low=1)
    strategy: str = setting(
        "auto", "How they share the work; auto is ddp from two on.", choices=("auto", "ddp")
    )
    seed: int = setting(0, "Start of all random numbers.", low=0, high=2**32 - 1)
    workers: int = setting(
        0, "Processes that prepare crops; 0 prepares them in the training process.", low=0, high=64
    )

    def __post_init__(self) -> None:
        if self.scale_low > self.scale_high:
            raise ValueError(f"--scale-low {self.scale_low} is above --scale-high {self.scale_high}")

        if self.steps <= self.rounds:
            raise ValueError(
                f"--rounds {self.rounds} needs a step for each round and one before them; use --steps {self.rounds + 1}"
            )

        if self.batch % self.processes:
            raise ValueError(f"--batch {self.batch} cannot be shared evenly by {self.processes} processes")

    @property
    def processes(self) -> int:
        """That train together."""
        return self.devices * self.nodes

    @property
    def machine_crops(self) -> int:
        """Crops of a batch that are machine-labelled, once a round has begun: never more than by hand."""
        return int(self.batch * self.machine)

    @property
    def round_ends(self) -> tuple[int, ...]:
        """The step at which each round ends; round 0 learns from the hand masks alone."""
        return tuple(self.steps * (n + 1) // (self.rounds + 1) for n in range(self.rounds + 1))

    def round_of(self, step: int) -> int:
        """The round that a step, from 0, belongs to."""
        return sum(end <= step for end in self.round_ends[:-1])


@dataclass(frozen=True)
class LabelConfig:
    """How the model labels the other paintings."""

    flip: bool = setting(True, "Average with the mirrored painting.")
    scales: str = setting("1", "Scales to average over, with commas between, such as 0.75,1,1.25.")
    threshold: float | None = setting(
        None,
        "Pixels with less confidence than this become unlabelled (255)."
        "  [default: what `tool segment evaluate` learnt for each class, 0 before that]",
        low=0.0,
        high=1.0,
    )
    fill: bool = setting(False, "Keep the model's best guess where it is unsure: no pixel is unlabelled.")
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
    precision: float = setting(
        0.9,
        "Share of each class's pixels that should be right; its threshold for pseudo-labels is learnt from that.",
        low=0.0,
        high=1.0,
    )
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
    layout: str = setting(
        "workspace",
        "`taming` also writes the folder taming/, which taming-transformers' data classes read as it is.",
        choices=("workspace", "taming"),
    )


@dataclass(frozen=True)
class AssistConfig:
    """Where the model answers Label Studio."""

    host: str = setting("127.0.0.1", "Address to listen on; the default is reached from this machine only.")
    port: int = setting(0, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    address: str | None = setting(
        None, "Where Label Studio reaches it, if elsewhere than there, like http://my-machine:9090."
    )
    regions: str = setting(
        "brush",
        "Form of the pre-annotations: `brush` shows every pixel, `polygon` has outlines to within a pixel.",
        choices=("brush", "polygon"),
    )
    url: str | None = setting(
        None,
        "Label Studio's address, or `embedded`.  [default: LABEL_STUDIO_URL, then tool.toml's, then embedded]",
    )
