"""Sizes of the generator's three models. Torch-free, saved in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class _Sizes:
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a checkpoint's `config.json`.

        Raises:
            ValueError: a key is missing or unknown; the message names it.
        """
        known = {one.name for one in fields(cls)}
        for name in sorted(known ^ values.keys()):
            raise ValueError(f"{cls.__name__}: {'missing' if name in known else 'unknown'} key {name!r}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


@dataclass(frozen=True)
class VQGANConfig(_Sizes):
    """A VQGAN's sizes, named as in the paper; the names in brackets are taming-transformers' own.

    Source: taming-transformers, taming/models/vqgan.py and taming/modules/diffusionmodules/model.py.
    """

    in_channels: int = 3
    out_channels: int = 3  # (out_ch)
    channels: int = 128  # width at full resolution (ch)
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one a level (ch_mult)
    residual_blocks: int = 2  # a level (num_res_blocks)
    attention_resolutions: tuple[int, ...] = (16,)  # levels of `resolution` that attend (attn_resolutions)
    resolution: int = 256  # the training crop that attention_resolutions refer to
    z_channels: int = 256
    embed_dim: int = 256  # width of a codebook row
    codebook_size: int = 1024  # (n_embed)
    dropout: float = 0.0

    @property
    def downsampling(self) -> int:
        """Pixels a token, along each axis."""
        return int(2 ** (len(self.channel_multipliers) - 1))


@dataclass(frozen=True)
class GPTConfig(_Sizes):
    """A transformer's sizes. Source: taming-transformers, taming/modules/transformer/mingpt.py."""

    vocab_size: int = 1024
    block_size: int = 512  # mask tokens and painting tokens of one window
    layers: int = 24  # (n_layer)
    heads: int = 16  # (n_head)
    width: int = 1024  # (n_embd)
    dropout: float = 0.0  # of embeddings and residual branches (embd_pdrop, resid_pdrop)

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def window(self) -> int:
        """Side of the square window, in tokens: half the block is one window of mask tokens."""
        side = int((self.block_size // 2) ** 0.5)
        if 2 * side * side != self.block_size:
            raise ValueError(f"block_size {self.block_size} is not twice a square")
        return side


# The seed document's models: paintings and masks at 256 x 256, 16 pixels a token, 305 M parameters in the GPT.
SEED_PAINTING_CODES = VQGANConfig()
SEED_MASK_CODES = VQGANConfig(in_channels=182, out_channels=182)
SEED_TRANSFORMER = GPTConfig()
