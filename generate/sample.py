"""A mask becomes paintings: cut to tokens, painted, decoded, written with its recipe."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from annotate.errors import UserError
from annotate.files import read_json, whole_file, write_json
from annotate.progress import progress
from annotate.workspace import Workspace
from generate.canvas import resize_canvas
from generate.checkpoint import load_gpt, load_vqgan
from generate.compose import parse_size, read_composition
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.painting import Chance, paint_tokens
from generate.sample_config import SampleConfig
from generate.vqgan import VQGAN
from segment.device import choose_device

Ids = NDArray[np.uint8]
TOGETHER = 8  # paintings that share every step; more would take memory (keys and values) and save little time


@dataclass(frozen=True)
class Sample:
    """One painting that was made."""

    path: str
    seed: int
    number: int
    size: tuple[int, int]  # (H, W)
    log_likelihood: float | None  # mean over tokens, nats; None where the painting was there already


@dataclass(frozen=True)
class SampleResult:
    """What `tool generate sample` made."""

    mask: str
    samples: tuple[Sample, ...]
    tokens: int  # a painting
    seconds: float
    tokens_a_second: float


@dataclass(frozen=True)
class Models:
    """The three trained models, and what tells them apart from others."""

    painting_codes: VQGAN
    mask_codes: VQGAN
    transformer: GPT
    digests: dict[str, str]


def load_models(workspace: Workspace, device: torch.device) -> Models:
    """Load the workspace's generator.

    Raises:
        UserError: a model is missing or damaged, or the three do not fit each other.
    """
    painting, a = load_vqgan(workspace.model("painting-codes"), "tool generate train painting")
    mask, b = load_vqgan(workspace.model("mask-codes"), "tool generate train mask")
    gpt, c = load_gpt(workspace.model("transformer"), "tool generate train transformer")
    for name, codes in (("painting-codes", painting), ("mask-codes", mask)):
        if codes.config.codebook_size > gpt.config.vocab_size:
            raise UserError(
                f"{workspace.model(name)}: codebook_size {codes.config.codebook_size} exceeds the transformer's "
                f"vocab_size {gpt.config.vocab_size}; run `tool generate train transformer` again"
            )
    if painting.config.downsampling != mask.config.downsampling:
        raise UserError(
            f"{workspace.root}: painting codes have {painting.config.downsampling} pixels a token, mask codes "
            f"{mask.config.downsampling}; train both with the same preset"
        )
    trained = c.config.get("codes", {})  # which codes the transformer learnt on, where its training said so
    for name, digest in (("painting-codes", a.digest), ("mask-codes", b.digest)):
        if trained.get(name, digest) != digest:
            raise UserError(
                f"{workspace.model(name)}: trained again since the transformer was; "
                "run `tool generate train transformer` again"
            )
    digests = {"painting-codes": a.digest, "mask-codes": b.digest, "transformer": c.digest}
    return Models(painting.to(device), mask.to(device), gpt.to(device), digests)


def sample(workspace: Workspace, config: SampleConfig, device: str = "auto") -> SampleResult:
    """Paint `config.count` paintings from one mask and write them with their recipes.

    A painting that is there already with the same recipe is not painted again; one of another recipe that has
    its name is left alone.

    Raises:
        UserError: no models, no such mask, a mask in another encoding, or with an id that has no channel.
    """
    name, ids = read_composition(workspace, config.mask, config.encoding)
    place = choose_device(device)
    models = load_models(workspace, place)
    check_channels(ids, models.mask_codes.config.in_channels, config.mask)
    if config.size is not None:
        ids = resize_canvas(ids, parse_size(config.size))
    recipes = [_recipe(config, name, ids, models, number) for number in range(config.count)]
    stem = f"{Path(name).name}-seed{config.seed}"
    paths = [_path(config.out or workspace.samples, f"{stem}-{n:02d}", one) for n, one in enumerate(recipes)]
    missing = [n for n, path in enumerate(paths) if read_recipe(path) is None or _lacks_tokens(config, path)]
    started = time.monotonic()
    mask_tokens = encode_canvas(models, ids, place)
    likely: dict[int, float] = {}
    for number, painted, likelihood in _paint(models, mask_tokens, config, missing):
        (picture,) = decode_canvas(models.painting_codes, painted[None], ids.shape)
        if config.save_tokens:
            write_tokens(paths[number].with_suffix(".npy"), painted)
        write_sample(paths[number], picture, recipes[number])
        likely[number] = likelihood
    spent = time.monotonic() - started
    size, count = (ids.shape[0], ids.shape[1]), mask_tokens.numel()
    made = (Sample(str(path), config.seed, n, size, likely.get(n)) for n, path in enumerate(paths))
    result = SampleResult(name, tuple(made), count, spent, count * len(missing) / spent)
    if missing:
        figures = {"mask": name, "paintings": len(missing), "tokens_a_second": result.tokens_a_second}
        workspace.save_report("generate-sample", {**figures, "seconds": spent})
    return result


def check_channels(ids: Ids, n_labels: int, where: str) -> None:
    """Raise a UserError where an id has no channel in the mask codes."""
    worst = int(ids.max())
    if worst >= n_labels:
        raise UserError(
            f"{where}: shifted id {worst} (raw {worst - 1}) has no channel: the mask codes were trained with "
            f"n_labels {n_labels}; use another class there, or train with n_labels {worst + 1}"
        )


def encode_canvas(models: Models, ids: Ids, device: torch.device) -> Tensor:
    """Mask tokens (1, h, w) of a canvas of any size: padded by its own borders to whole tokens and windows."""
    factor = models.mask_codes.config.downsampling
    least = models.transformer.config.window * factor
    height, width = (max(-(-side // factor) * factor, least) for side in ids.shape)
    padded = np.pad(ids, ((0, height - ids.shape[0]), (0, width - ids.shape[1])), mode="edge")
    with torch.inference_mode():
        return models.mask_codes.encode_mask(
            torch.from_numpy(padded.astype(np.int64))[None].to(device)
        ).indices


def decode_canvas(codes: VQGAN, tokens: Tensor, size: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    """Painting tokens (B, h, w) -> B paintings (H, W, 3), cut to `size` (H, W); one at a time, to save memory."""
    paintings = []
    with torch.inference_mode():
        for grid in tokens:
            image = codes.decode_indices(grid[None])[0].float()  # (3, H, W) in [-1, 1]
            pixels = image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            paintings.append(pixels.permute(1, 2, 0).cpu().numpy()[: size[0], : size[1]])
    return paintings


def write_sample(path: Path, painting: NDArray[np.uint8], recipe: dict[str, Any]) -> None:
    """Write a painting with its recipe in a PNG text chunk, and beside it as JSON."""
    info = PngImagePlugin.PngInfo()
    info.add_text("recipe", json.dumps(recipe))
    write_json(path.with_suffix(".json"), recipe)
    with whole_file(path) as temporary:  # last: where the PNG is, everything is
        Image.fromarray(painting).save(temporary, format="PNG", pnginfo=info)


def write_tokens(path: Path, tokens: Tensor) -> None:
    """Write a token grid (h, w) as int64 `.npy`."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, tokens.cpu().numpy())


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe of a painting that was sampled; None where there is no painting, or one of another origin."""
    beside = path.with_suffix(".json")
    return dict(read_json(beside)) if path.exists() and beside.exists() else None


def _path(folder: Path, stem: str, recipe: dict[str, Any]) -> Path:
    """Where a painting goes: where another one has its name, the recipe's digest is added."""
    plain = folder / f"{stem}.png"
    if not plain.exists() or read_recipe(plain) == recipe:
        return plain
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{stem}-{digest}.png"


def _lacks_tokens(config: SampleConfig, path: Path) -> bool:
    return config.save_tokens and not path.with_suffix(".npy").exists()


def _paint(
    models: Models, mask_tokens: Tensor, config: SampleConfig, numbers: list[int]
) -> Iterator[tuple[int, Tensor, float]]:
    """Paint the paintings of these numbers, some together: (number, tokens (h, w), log-likelihood) of each."""
    if not numbers:
        return
    decoder = Decoder(models.transformer, torch.bfloat16 if config.precision == "bfloat16" else torch.float32)
    chance = Chance(config.temperature, config.top_k, config.seed)
    stride = 1 if config.stride == 1 else models.transformer.config.window // 2
    codes = models.painting_codes.config.codebook_size
    title = f"Painting {len(numbers)} x {tuple(mask_tokens.shape[1:])} tokens"
    with progress(title, mask_tokens.numel() * len(numbers)) as bar:
        started, done = time.monotonic(), 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            bar(tokens, f"{done / (time.monotonic() - started):.0f} tokens/s")

        for start in range(0, len(numbers), TOGETHER):
            now = numbers[start : start + TOGETHER]
            batch = mask_tokens.expand(len(now), -1, -1).contiguous()
            painted = paint_tokens(decoder, batch, chance, stride, now, advance, codes)
            yield from zip(now, painted.tokens, painted.log_likelihood.tolist(), strict=True)


def _recipe(config: SampleConfig, name: str, ids: Ids, models: Models, number: int) -> dict[str, Any]:
    """All that decides the painting, and no more: the same recipe gives the same painting again."""
    deciding = ("temperature", "top_k", "seed", "stride", "precision")
    return {
        **{setting: getattr(config, setting) for setting in deciding},
        "number": number,
        "mask_name": Path(name).name,
        "mask_sha256": hashlib.sha256(repr(ids.shape).encode() + ids.tobytes()).hexdigest()[:16],
        "canvas": list(ids.shape),
        "models": models.digests,
    }
