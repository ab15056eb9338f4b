"""On a GPU: the same tokens, the same losses as on a CPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_models import GRIDS, mask_codes, painting_codes, save_models, transformer, vector
from torch import Tensor
from toy_paintings import toy_workspace

from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from cli import main
from generate import recorded_step
from generate.decoding import Decoder
from generate.evaluate import evaluate
from generate.evaluate_config import EvaluateConfig
from generate.painting import Chance, Given, Guidance, paint_tokens
from generate.presets import MaskCodesSettings, PaintingCodesSettings, TransformerSettings
from generate.projection import Precision
from generate.recorded_step import RecordedStep
from generate.texture import texture_loss
from generate.tiles import decode_tiled, encode_tiled
from generate.train_codes import train_mask_codes, train_painting_codes
from generate.train_transformer import train_transformer
from segment.config import TrainConfig
from segment.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CHANCE = Chance(temperature=1.0, top_k=20, seed=3)
CODES: dict[str, Any] = {
    "steps": 12, "precision": "float32", "channel_multipliers": "1,1,1", "z_channels": 8, "embed_dim": 8, "codebook_size": 16,
    "smallest_side": 0, "crop": 32, "batch": 2, "save_every": 6, "start_codebook": 3, "revive_every": 2,
}  # fmt: skip
PAINTING = PaintingCodesSettings(
    adversarial=0.5, adversarial_start=11, discriminator_channels=4, augment=True, perceptual="none", **CODES
)
MASK = MaskCodesSettings(open_part=0.3, **CODES)
TOKENS = TransformerSettings(
    steps=12, layers=2, heads=2, width=32, window=8, views=2, dropout=0.1, token_dropout=0.1, smallest_side=0,
    crop=32, batch=2, precision="float32", save_every=6, open_all=0.1, open_part=0.2,
)  # fmt: skip


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randint(64, size, generator=torch.Generator().manual_seed(seed))


def on_gpu(precision: Precision = "float32") -> Decoder:
    return Decoder(transformer().cuda(), precision)


@pytest.mark.parametrize("grid", GRIDS)
def test_greedy_tokens_are_the_references(grid: str) -> None:
    decoder, masks = on_gpu(), vector(f"mask_indices_{grid}").cuda()
    for _ in range(2):  # the second time from recordings
        painted = paint_tokens(decoder, masks, Chance(0.7, top_k=1))
        assert torch.equal(painted.tokens.cpu(), vector(f"greedy_tokens_{grid}"))


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("alike", [True, False])
def test_a_gpu_draws_what_a_cpu_draws(stride: int, alike: bool) -> None:
    masks = drawn(1, 2, 17, 25)
    if alike:
        masks[1] = masks[0]
    given, guidance = Given(drawn(2, 17, 25), drawn(3, 17, 25) < 20), Guidance(1.5, drawn(4, 1, 17, 25))
    cpu = paint_tokens(Decoder(transformer()), masks, CHANCE, stride, given=given, guidance=guidance)
    gpu = paint_tokens(on_gpu(), masks.cuda(), CHANCE, stride, given=given, guidance=guidance)
    assert torch.equal(gpu.tokens.cpu(), cpu.tokens)
    torch.testing.assert_close(gpu.log_likelihood, cpu.log_likelihood, atol=1e-3, rtol=0)


def test_bfloat16_paints_the_same_twice() -> None:
    decoder, masks = on_gpu("bfloat16"), drawn(1, 2, 32, 40).cuda()
    first, second = (paint_tokens(decoder, masks, CHANCE, 8).tokens for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(paint_tokens(on_gpu("bfloat16"), masks, CHANCE, 8).tokens, first)


def test_one_decoder_after_another() -> None:
    """What is recorded for one does not disturb the next."""
    masks = drawn(1, 1, 16, 24).cuda()
    for seed in range(6):
        tokens = [paint_tokens(on_gpu(), masks, Chance(1.0, 20, seed)).tokens for _ in range(2)]
        assert torch.equal(*tokens)


def test_codes_are_the_references() -> None:
    image, masks = vector("image").cuda(), vector("mask_16x24").cuda()
    ids = (masks.to(torch.uint8) + 1).long()
    assert torch.equal(encode_tiled(painting_codes().cuda(), image).cpu(), vector("image_indices"))
    found = encode_tiled(mask_codes().cuda(), ids.view(1, *ids.shape[-2:])).cpu()
    assert torch.equal(found, vector("mask_indices_16x24"))
    tokens = vector("image_indices")[0]
    cpu, gpu = (
        decode_tiled(one, tokens, vector("image").shape[-2:])
        for one in (painting_codes(), painting_codes().cuda())
    )
    assert np.abs(cpu.astype(int) - gpu).max() <= 1


def test_the_command_paints(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save_models(workspace)
    ids = np.full((260, 330), 156, np.uint8)
    ids[180:] = 149
    write_mask(workspace.mask("shifted", "one"), ids, Encoding.SHIFTED)
    words = ["generate", "sample", "-w", str(tmp_path), "--mask", "one", "--count", "2", "--preview", "50"]
    for more in ([], ["--guidance", "1.5", "--precision", "bfloat16"]):
        result = CliRunner().invoke(main, [*words, *more, "--device", "cuda"])
        assert result.exit_code == 0, result.stderr
    assert len(list(workspace.samples.glob("*.png"))) == 4
    first = next(workspace.samples.glob("*-00.png"))
    repaint = ["--from", str(first), "--repaint", "0,0,50%,50%", "--count", "1"]
    again = CliRunner().invoke(main, ["generate", "sample", "-w", str(tmp_path), *repaint])
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("name", ["painting", "mask", "transformer"])
def test_recorded_steps_have_the_losses_of_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through warm-up, recording, and every phase of a training."""
    histories = []
    for kind, warm_up in (("recorded", 3), ("plain", 10**6)):
        monkeypatch.setattr(recorded_step, "WARM_UP", warm_up)
        workspace = toy_workspace(tmp_path / kind, size=(48, 60))
        train_painting_codes(workspace, replace(PAINTING, steps=20), "cuda" if name == "painting" else "cpu")
        if name != "painting":
            train_mask_codes(workspace, MASK, "cuda" if name == "mask" else "cpu")
        if name == "transformer":
            train_transformer(workspace, TOKENS, "cuda")
        histories.append((workspace.report(f"generate-train-{name}") or {})["history"])
    for mine, theirs in zip(*histories, strict=True):
        # convolutions add in any order; the discriminator makes more of it than the others
        for name in mine:
            assert mine[name] == pytest.approx(
                theirs[name], rel=0.05, abs=0.2 if name == "discriminator" else 0.02
            )


def test_many_tokens_can_be_recorded() -> None:
    """torch's embedding has another backward pass for more than 3072."""
    table = torch.nn.Embedding(64, 32, device="cuda")

    def step(batch: Sequence[Tensor]) -> dict[str, Tensor]:
        loss = table(batch[0]).square().sum()
        torch.autograd.backward(loss)
        return {"loss": loss.detach()}

    recorded = RecordedStep(step, [table.weight])
    for seed in range(8):
        tokens = drawn(seed, 4096).cuda()
        table.zero_grad()
        found = float(recorded([tokens])["loss"])
        gradient = table.weight.grad
        assert gradient is not None
        counts = torch.bincount(tokens, minlength=64)[:, None]
        torch.testing.assert_close(gradient, 2 * counts * table.weight.detach())
        assert found == pytest.approx(float(table(tokens).square().sum().detach()), rel=1e-5)


def test_the_texture_loss_can_be_recorded() -> None:
    painting = torch.rand(2, 3, 64, 64, device="cuda") * 2 - 1
    image = torch.zeros_like(painting, requires_grad=True)

    def step(batch: Sequence[Tensor]) -> dict[str, Tensor]:
        loss = texture_loss(image, batch[0])
        torch.autograd.backward(loss)
        return {"loss": loss.detach()}

    recorded = RecordedStep(step, [image])
    found = [float(recorded([painting])["loss"]) for _ in range(8)]
    gradient = image.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert len(set(found)) == 8  # directions are drawn anew
    assert found[3:] == pytest.approx([sum(found[:3]) / 3] * 5, rel=0.3)


def test_the_whole_generator_trains_and_is_measured(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, size=(64, 80))
    assert train_painting_codes(workspace, PAINTING, "cuda").trained
    assert train_mask_codes(workspace, MASK, "cuda").trained
    config = replace(TOKENS, precision="auto", clip=1.0)
    assert train_transformer(workspace, config, "cuda").held_out_bits_per_token
    for key in ("toy 0", "toy 1"):
        ids = np.full((64, 80), 148, np.uint8)
        ids[:, 40:] = 177
        write_mask(workspace.mask("hand", key), ids, Encoding.RAW)
    quick = TrainConfig(init="none", steps=4, batch=2, crop=32, smallest_side=0, save_every=2, rounds=0)
    train(workspace, quick, "cuda")
    found = evaluate(workspace, EvaluateConfig(masks=1, perceptual="none"), "cuda")
    assert found.fidelity is not None
    assert found.samples == 1
