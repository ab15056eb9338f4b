"""The tiny reference models of tests/golden, and vectors made with taming-transformers' own implementation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from annotate.workspace import Workspace
from generate.checkpoint import save_model
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.vqgan import VQGAN

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"
GRIDS = ("16x16", "16x24", "24x20")

_SIZES = VQGANConfig(
    channels=32,
    channel_multipliers=(1, 1, 1, 1, 2),
    residual_blocks=1,
    z_channels=32,
    embed_dim=32,
    codebook_size=64,
)
PAINTING_SIZES = _SIZES
MASK_SIZES = VQGANConfig.from_dict(_SIZES.to_dict() | {"in_channels": 182, "out_channels": 182})
GPT_SIZES = GPTConfig(vocab_size=64, block_size=512, layers=2, heads=4, width=64)


@cache
def _tensors() -> dict[str, Tensor]:
    return dict(load_file(GOLDEN / "tiny.safetensors"))


def vector(name: str) -> Tensor:
    """A reference input or output; token grids are int64."""
    value = _tensors()[f"vectors/{name}"]
    return value.long() if not value.is_floating_point() else value


def weights(prefix: str) -> dict[str, Tensor]:
    start = f"weights/{prefix}"
    return {name.removeprefix(start): one for name, one in _tensors().items() if name.startswith(start)}


def painting_codes() -> VQGAN:
    model = VQGAN(PAINTING_SIZES)
    model.load_state_dict(weights("first_stage_model."))
    return model.eval()


def mask_codes() -> VQGAN:
    """Its decoder keeps random weights: sampling never decodes a mask, so the file leaves it out."""
    model = VQGAN(MASK_SIZES)
    missing, unexpected = model.load_state_dict(weights("cond_stage_model."), strict=False)
    assert not unexpected
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    return model.eval()


def transformer() -> GPT:
    model = GPT(GPT_SIZES)
    model.load_state_dict(weights("transformer."))
    return model.eval()


def save_models(workspace: Workspace) -> None:
    """Give a workspace the three reference models, as if it had trained them."""
    for name, model in (
        ("painting-codes", painting_codes()),
        ("mask-codes", mask_codes()),
        ("transformer", transformer()),
    ):
        save_model(workspace.model(name), model, {})
