"""A mask becomes paintings: cut to tokens, painted, decoded, written with its recipe."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotate.errors import UserError
from annotate.files import whole_file
from annotate.progress import note, progress
from annotate.workspace import Workspace
from generate.checkpoint import load_gpt, load_vqgan
from generate.composition import Checked, check_composition
from generate.conditioning import OPEN
from generate.decoding import Decoder
from generate.gpt import GPT
from generate.live import Live, unfinished_path, written_to_the_end
from generate.memory import freed_memory_kept
from generate.order import MOST_TOGETHER, Order, read_order
from generate.painting import Chance, Guidance, paint_tokens
from generate.projection import Precision
from generate.recipe import free_path, mend_recipe, recipe_beside, write_painting
from generate.sample_config import SampleConfig
from generate.tiles import decode_tiled, encode_tiled
from generate.vqgan import VQGAN
from segment.device import choose_device, has_fast_bfloat16

Ids = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One painting that was made."""

    path: str
    seed: int
    number: int
    size: tuple[int, int]  # (H, W)
    log_likelihood: float | None  # mean over tokens, nats; None where the painting was there already

    @property
    def painted(self) -> bool:
        """Now, and not before."""
        return self.log_likelihood is not None


@dataclass(frozen=True)
class SampleResult:
    """What `tool generate sample` made."""

    mask: str
    samples: tuple[Sample, ...]
    tokens: int  # of a painting's canvas
    seconds: float
    tokens_a_second: float  # painted
    departures: tuple[str, ...]  # of the mask from the workspace's own paintings, in words
    nearest: str | None  # key of the painting whose mask is most like it


@dataclass(frozen=True)
class _Work:
    """One painting to make."""

    number: int
    path: Path
    recipe: dict[str, Any]


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


def sample(
    workspace: Workspace, config: SampleConfig, device: str = "auto", models: Models | None = None
) -> SampleResult:
    """Paint `config.count` paintings from one mask and write them with their recipes.

    A painting that is there already with the same recipe is not painted again; one of another recipe that has
    its name is left alone.

    Args:
        models: the workspace's, on the device, where they are loaded already.

    Raises:
        UserError: no models, no such mask, a mask in another encoding, or with an id that has no channel.
    """
    order = read_order(workspace, config)
    config = order.config
    place = choose_device(device)
    models = models or load_models(workspace, place)
    _same_models(order, models)
    check_channels(order.ids, models.mask_codes.config.in_channels, order.name)
    checked = check_composition(workspace, order.ids) if config.check else Checked((), None)
    for line in checked.departures:
        note(f"composition: {line}")
    folder = config.out or workspace.samples
    _check_folder(folder)
    works = [_work(order, models, folder, number) for number in order.numbers]
    missing = [one for one in works if _lacks(config, one)]
    started = time.monotonic()
    # windows and tiles come and go, which took a third of the time of a canvas of 1024 x 1024
    with freed_memory_kept(place.type):
        done = {
            number: (count, likelihood) for number, count, likelihood in _paint(models, order, missing, place)
        }
    spent = time.monotonic() - started
    size, count = (order.ids.shape[0], order.ids.shape[1]), _tokens(models, order)
    for one in works:
        mend_recipe(one.path)
    made = (
        Sample(str(one.path), config.seed, one.number, size, done.get(one.number, (0, None))[1])
        for one in works
    )
    speed = sum(painted for painted, _ in done.values()) / spent
    result = SampleResult(order.name, tuple(made), count, spent, speed, checked.departures, checked.nearest)
    if missing:
        figures = {"mask": order.name, "paintings": len(missing), "tokens_a_second": result.tokens_a_second}
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
    height, width = (side * models.mask_codes.config.downsampling for side in _grid(models, ids))
    padded = np.pad(ids, ((0, height - ids.shape[0]), (0, width - ids.shape[1])), mode="edge")
    with torch.inference_mode():
        return encode_tiled(models.mask_codes, torch.from_numpy(padded)[None].to(device))


def _grid(models: Models, ids: Ids) -> tuple[int, int]:
    """(h, w) of a canvas in tokens: whole ones, and at least a window."""
    factor, least = models.mask_codes.config.downsampling, models.transformer.config.window
    return max(-(-ids.shape[0] // factor), least), max(-(-ids.shape[1] // factor), least)


def write_tokens(path: Path, tokens: Tensor) -> None:
    """Write a token grid (h, w) as int64 `.npy`."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, tokens.cpu().numpy())


def _same_models(order: Order, models: Models) -> None:
    """Raise a UserError where a recipe asks for other models than the workspace has."""
    for name, digest in (order.models or {}).items():
        if models.digests.get(name) != digest:
            raise UserError(
                f"{order.config.recipe}: painted with another {name} ({digest}) than this workspace's "
                f"({models.digests.get(name)}); give the --workspace that it was painted in"
            )


def _work(order: Order, models: Models, folder: Path, number: int) -> _Work:
    recipe = order.recipe(models.digests, number)
    return _Work(number, free_path(folder, f"{order.stem}-{number:02d}", recipe), recipe)


def _tokens(models: Models, order: Order) -> int:
    """How many tokens a painting's canvas has."""
    height, width = _grid(models, order.ids)
    return height * width


def _check_folder(folder: Path) -> None:
    """Raise a UserError, before anything is painted, where paintings cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fits = os.access(folder, os.W_OK | os.X_OK)
        reason = "" if fits else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(f"{folder}: paintings cannot be written there ({reason}); choose another --out")


def _lacks(config: SampleConfig, work: _Work) -> bool:
    there = recipe_beside(work.path) is not None
    return not there or (config.save_tokens and not work.path.with_suffix(".npy").exists())


def _paint(
    models: Models, order: Order, works: list[_Work], device: torch.device
) -> Iterator[tuple[int, int, float]]:
    """Paint and write, some together: (number, tokens painted for it, log-likelihood) of each.

    How many share a step decides how a processor rounds, and in low precision that can tip a token. So a recipe names
    them, and who paints it again paints them all.
    """
    if not works:
        return
    config, codes = order.config, models.painting_codes
    mask_tokens = encode_canvas(models, order.ids, device)  # (1, h, w)
    size = (mask_tokens.shape[1], mask_tokens.shape[2])
    given = order.repaint.given(codes, size, device) if order.repaint else None
    guidance = None
    if config.guidance != 1:
        silent = encode_canvas(models, np.full_like(order.ids, OPEN), device)  # a mask that says nothing
        guidance = Guidance(config.guidance, silent)
    if config.precision == "bfloat16" and not has_fast_bfloat16(device):
        note("this processor has no bfloat16 of its own, so --precision int8 or float32 is quicker")
    decoder = Decoder(models.transformer, cast(Precision, config.precision))
    chance = Chance(config.temperature, config.top_k, config.seed)
    stride = 1 if config.stride == 1 else models.transformer.config.window // 2

    def finish(tokens: Tensor) -> NDArray[np.uint8]:
        picture = decode_tiled(codes, tokens, order.ids.shape)
        return order.repaint.blend(picture) if order.repaint else picture

    todo = mask_tokens.numel() - (int(given.where.sum()) if given else 0)
    most = MOST_TOGETHER if guidance is None else MOST_TOGETHER // 2
    count = len(order.together or works)
    with progress(f"Painting {count} x {todo} tokens", todo * count) as bar:
        under = order.repaint.painting if order.repaint else None
        live = Live(bar, config.preview, finish, codes.config.downsampling, under)
        for start in range(0, len(works), most):
            now = works[start : start + most]
            numbers = list(order.together) or [one.number for one in now]
            first = numbers.index(now[0].number)
            ours = slice(first, first + len(now))
            recipes = [one.recipe | {"together": numbers} for one in now]
            named = [(one.path, recipe) for one, recipe in zip(now, recipes, strict=True)]
            with contextlib.ExitStack() as writing:
                with live.painting(named, ours):
                    painted = paint_tokens(
                        decoder,
                        mask_tokens.expand(len(numbers), -1, -1).contiguous(),
                        chance,
                        stride,
                        numbers,
                        live.advance,
                        codes.config.codebook_size,
                        given,
                        guidance,
                        live.follow,
                    )
                    writing.enter_context(written_to_the_end())
                for one, recipe, tokens in zip(now, recipes, painted.tokens[ours], strict=True):
                    if config.save_tokens:
                        write_tokens(one.path.with_suffix(".npy"), tokens)
                    write_painting(one.path, finish(tokens), recipe)
                    unfinished_path(one.path).unlink(missing_ok=True)
            for one, likelihood in zip(now, painted.log_likelihood[ours].tolist(), strict=True):
                yield one.number, todo * len(numbers) // len(now), likelihood
