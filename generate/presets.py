"""Settings of the three trainings: `small` for a CPU and some forty paintings, `seed` the seed document's. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from annotate.options import setting
from generate.config import GPTConfig, VQGANConfig

# What may change between a killed run and the one that goes on with it: nothing of it decides the weights. Of
# `perceptual`, where VGG16's weights lie is free; whether there are any decides, and the training finds it out.
FREE = frozenset({"workers", "save_every", "grid_every", "perceptual"})

LEAST_CROP = 16  # pixels
LEAST_WINDOW = 2  # tokens


@dataclass(frozen=True)
class Schedule:
    """What every training has."""

    steps: int = setting(1000, "Steps of the optimizer.", low=1)
    batch: int = setting(8, "Crops a step and device.", low=1)
    accumulate: int = setting(1, "Batches whose gradients make one step.", low=1)
    lr: float = setting(1e-3, "Learning rate.", low=0.0)
    decay: str = setting("cosine", "What the learning rate does after it.", choices=("cosine", "none"))
    warmup: int = setting(20, "Steps in which the learning rate rises to its value.", low=0)
    clip: float = setting(1.0, "Longest gradient; 0 leaves it as it is.", low=0.0)
    smallest_side: int = setting(256, "Scale the paintings' smallest side to this; 0 keeps them.", low=0)
    crop: int = setting(64, "Side of the random crops in pixels.", low=LEAST_CROP)
    flip: bool = setting(True, "Mirror every second crop.")
    precision: str = setting(
        "auto",
        "Of the matrix products; auto takes bfloat16 where the hardware multiplies it.",
        choices=("auto", "float32", "bfloat16"),
    )
    save_every: int = setting(100, "Steps between saved states; a killed run goes on from the last.", low=1)
    grid_every: int = setting(
        0, "Steps between sample grids in reports/, drawn where a state is saved; 0: each time.", low=0
    )
    devices: int = setting(1, "GPUs a machine, or processes on a CPU; each has its own --batch.", low=1)
    nodes: int = setting(1, "Machines that train together, started by torchrun or SLURM.", low=1)
    workers: int = setting(0, "Processes that load crops; 0 loads them in this one.", low=0, high=64)
    seed: int = setting(0, "Start of the random numbers.", low=0, high=2**31)

    @property
    def reach(self) -> str:
        """The option that says how much of a painting is seen at once, and its value."""
        return f"--crop (now {self.crop})"

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the weights."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


@dataclass(frozen=True)
class CodesSettings(Schedule):
    """Sizes of a VQGAN, and how its codebook is started and kept alive."""

    channels: int = setting(32, "Width at full resolution (ch).", low=32)
    channel_multipliers: str = setting("1,2,2", "Width of each level; each but the last halves the size.")
    residual_blocks: int = setting(1, "Residual blocks a level (num_res_blocks).", low=1)
    attention: str = setting("", "Sides of the levels that attend, for the crop (attn_resolutions).")
    z_channels: int = setting(32, "Width of the encoder's output.", low=1)
    embed_dim: int = setting(32, "Width of a codebook row.", low=1)
    codebook_size: int = setting(512, "Rows of the codebook (n_embed).", low=2)
    dropout: float = setting(0.0, "Dropout.", low=0.0, high=0.9)
    beta1: float = setting(0.9, "Adam's memory of gradients.", low=0.0, high=0.999)
    beta2: float = setting(0.95, "Adam's memory of their squares.", low=0.0, high=0.9999)
    start_codebook: int = setting(
        0, "Step at which k-means starts the codebook; before, nothing is quantised. 0: never.", low=0
    )
    revive_every: int = setting(
        0, "Steps between revivals of codebook rows that nothing uses; 0: never.", low=0
    )

    def __post_init__(self) -> None:
        if min(self._vqgan(3).channel_multipliers, default=0) < 1:
            raise ValueError(
                f"--channel-multipliers {self.channel_multipliers!r}: give one number from 1 on for each level, such as 1,2,4"
            )
        factor = self._vqgan(3).downsampling
        if self.crop % factor:
            raise ValueError(f"--crop {self.crop} is not a multiple of {factor}, the pixels a token")
        if self.channels % 32:
            raise ValueError(f"--channels {self.channels} is not a multiple of 32, the groups of the norms")

    def smaller(self, side: int) -> str:
        """The option that cuts crops which fit into `side` pixels, as a message goes on with it."""
        factor = self._vqgan(3).downsampling
        crop = side // factor * factor
        return f" or --crop {crop}" if crop >= LEAST_CROP else ""

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def _vqgan(self, channels: int) -> VQGANConfig:
        return VQGANConfig(
            in_channels=channels,
            out_channels=channels,
            channels=self.channels,
            channel_multipliers=whole_numbers(self.channel_multipliers, "--channel-multipliers"),
            residual_blocks=self.residual_blocks,
            attention_resolutions=whole_numbers(self.attention, "--attention"),
            resolution=self.crop,
            z_channels=self.z_channels,
            embed_dim=self.embed_dim,
            codebook_size=self.codebook_size,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class PaintingCodesSettings(CodesSettings):
    """How the painting codes are trained."""

    detail: float = setting(1.0, "Weight of the Laplacian pyramid's L1, beside plain L1.", low=0.0)
    texture: float = setting(
        0.0,
        "Weight of the sliced Wasserstein distance between the patches of each small area: strokes like the "
        "painter's, though not each at its place.",
        low=0.0,
        source="arXiv:2006.07229",
    )
    texture_part: float = setting(
        1 / 3,
        "Last part of the steps in which it counts. Only the decoder learns in it: what the codes say is settled.",
        low=0.0,
        high=1.0,
    )
    perceptual: str = setting(
        "auto",
        "VGG16 weights of the perceptual loss: a file, auto (those that torchvision has fetched before), "
        "fetch (let torchvision download them) or none.",
    )
    perceptual_weight: float = setting(1.0, "Weight of the perceptual loss.", low=0.0)
    adversarial: float = setting(0.0, "Weight of the adversarial loss; 0: no discriminator.", low=0.0)
    adversarial_start: int = setting(0, "Step from which the adversarial loss counts.", low=0)
    augment: bool = setting(
        False,
        "Show the discriminator everything with random colours, shifts and holes, against learning by heart.",
        source="arXiv:2006.10738",
    )
    discriminator_channels: int = setting(64, "Width of the discriminator's first layer.", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversarial and self.crop < 32:
            raise ValueError(f"--crop {self.crop} is too small for --adversarial, which needs 32")
        if self.texture and self.texture_start <= self.start_codebook:
            raise ValueError(
                f"--texture begins at step {self.texture_start} of {self.steps}, when only the decoder goes on learning, "
                f"and the codebook at {self.start_codebook}: raise --steps, lower --texture-part, or --texture 0"
            )

    def deciding(self) -> dict[str, Any]:
        found = super().deciding()
        if not self.texture:  # so trainings from before there was one are up to date, and can be gone on with
            del found["texture"], found["texture_part"]
        return found

    @property
    def texture_start(self) -> int:
        """Step from which the texture loss counts."""
        return round(self.steps * (1 - self.texture_part)) if self.texture else self.steps

    def vqgan(self) -> VQGANConfig:
        return self._vqgan(3)


@dataclass(frozen=True)
class MaskCodesSettings(CodesSettings):
    """How the mask codes are trained."""

    n_labels: int = setting(182, "Channels of the masks.", low=2, high=256)
    open_part: float = setting(
        0.0,
        "Share of the crops of which a part is set to unlabelled (a quarter of these: all), so that there are "
        "tokens for it.",
        low=0.0,
        high=1.0,
    )
    loss: str = setting(
        "class-wise",
        "class-wise: each class against the rest, as the paper; pixel: the classes against each other; balanced: the "
        "same, with a rare class weighing as much as a common one.",
        choices=("class-wise", "pixel", "balanced"),
    )

    def vqgan(self) -> VQGANConfig:
        return self._vqgan(self.n_labels)


@dataclass(frozen=True)
class TransformerSettings(Schedule):
    """Sizes of the transformer and how it is trained; the crop follows from the window."""

    crop: int = 64  # no option: only the marks of trainings from when it was one still have it
    layers: int = setting(6, "Blocks (n_layer).", low=1)
    heads: int = setting(8, "Attention heads (n_head).", low=1)
    width: int = setting(256, "Width (n_embd).", low=8)
    window: int = setting(
        16, "Side of the window in tokens; the block is twice its square.", low=LEAST_WINDOW
    )
    dropout: float = setting(0.0, "Dropout.", low=0.0, high=0.9)
    token_dropout: float = setting(
        0.0,
        "Mean share of the painting tokens shown that are random ones; each window draws its own, from none to "
        "twice as many. What is left to go by is the mask.",
        low=0.0,
        high=0.5,
    )
    open_all: float = setting(
        0.0,
        "Share of the windows whose mask is all unlabelled: what nothing is said about is painted freely, and "
        "--guidance works.",
        low=0.0,
        high=1.0,
    )
    open_part: float = setting(
        0.0, "Share of the windows of whose mask a part is unlabelled.", low=0.0, high=1.0
    )
    aligned_start: bool = setting(
        False, "Begin with an attention that looks from each painting token to the mask token at its place."
    )
    weight_decay: float = setting(0.01, "Weight decay of the matrices.", low=0.0)
    views: int = setting(8, "Shifts, each also mirrored, in which every painting is cut to tokens.", low=1)
    patience: int = setting(
        0, "Stop after so many saved states without a better one on the held-out paintings; 0: never.", low=0
    )

    def __post_init__(self) -> None:
        if self.open_all + self.open_part > 1:
            raise ValueError(f"--open-all {self.open_all} and --open-part {self.open_part} are more than 1")
        if self.width % self.heads:
            raise ValueError(f"--width {self.width} is not a multiple of --heads {self.heads}")

    def smaller(self, side: int, pixels: int) -> str:
        """As of codes; `pixels` a token."""
        return f" or --window {side // pixels}" if side >= LEAST_WINDOW * pixels else ""

    @property
    def reach(self) -> str:
        return f"--window (now {self.window})"

    def gpt(self, vocab_size: int) -> GPTConfig:
        return GPTConfig(
            vocab_size=vocab_size,
            block_size=2 * self.window**2,
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            dropout=self.dropout,
        )


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4)."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{option} {text}: give whole numbers such as 1,2,4") from error


# The paper's learning rate is 4.5e-6 times the crops of a step; its Adam knows no warm-up, decay or clipping.
_SEED: dict[str, Any] = {
    "batch": 1,
    "lr": 4.5e-6,
    "decay": "none",
    "warmup": 0,
    "clip": 0.0,
    "smallest_side": 460,
    "crop": 256,
    "save_every": 2000,
    "workers": 4,
}
_SEED_CODES: dict[str, Any] = {
    **_SEED,
    "channels": 128,
    "channel_multipliers": "1,1,2,2,4",
    "residual_blocks": 2,
    "attention": "16",
    "z_channels": 256,
    "embed_dim": 256,
    "codebook_size": 1024,
    "beta1": 0.5,
    "beta2": 0.9,
}

# `small` has 8 pixels a token. With 4 a window sees 64 pixels and the tokens are mostly texture: paintings from some
# codebooks followed their masks, those from others drowned in one colour (a codebook's seed decided it); with 8 they
# followed with every seed that was tried, and a painting has a quarter of the tokens. Painting codes of 600 steps had no
# greens and few lamps; on the demo's paintings 1500 gained 1.8 dB, and 0.61 mIoU in the new paintings instead of 0.41.
_SMALL_CODES: dict[str, Any] = {
    "batch": 4,
    "lr": 1e-3,
    "crop": 128,
    "channel_multipliers": "1,2,2,2",
    "codebook_size": 128,
    "revive_every": 25,
}

# The texture loss took what the DeepLab sees in the demo's new paintings from 0.572 to 0.623 and 0.651 mIoU (real ones: 0.661)
# for 1 dB of PSNR. Heavier, or from the first step on, it made a grid of strokes; see docs/bench-hand.md.
PAINTING_CODES = {
    "small": PaintingCodesSettings(
        steps=1200, start_codebook=250, save_every=200, texture=4.0, **_SMALL_CODES
    ),
    "seed": PaintingCodesSettings(
        steps=1_000_000,
        detail=0.0,
        adversarial=0.8,
        adversarial_start=10_000,
        augment=True,
        **_SEED_CODES,
    ),
}
MASK_CODES = {
    "small": MaskCodesSettings(
        steps=300, start_codebook=100, save_every=150, loss="balanced", open_part=0.2, **_SMALL_CODES
    ),
    "seed": MaskCodesSettings(steps=100_000, open_part=0.2, **_SEED_CODES),
}
TRANSFORMER = {
    "small": TransformerSettings(
        steps=450,
        batch=8,
        lr=1e-3,
        warmup=30,
        crop=128,
        save_every=75,
        grid_every=225,
        patience=4,
        layers=4,
        heads=4,
        width=256,
        token_dropout=0.5,
        open_all=0.1,
        open_part=0.1,
        aligned_start=True,
        views=1,
    ),
    "seed": TransformerSettings(
        steps=200_000,
        layers=24,
        heads=16,
        width=1024,
        views=4,
        patience=20,
        open_all=0.1,
        open_part=0.1,
        **_SEED,
    ),
}
