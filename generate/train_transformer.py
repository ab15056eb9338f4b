"""Training of the transformer: painting tokens, given the mask's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import Dataset

from annotate.errors import UserError
from annotate.progress import note, progress
from annotate.workspace import Workspace
from generate.checkpoint import load_vqgan, save_model
from generate.conditioning import open_part, unconditional_tokens
from generate.data import Picture, held_out_keys, load_masks, load_pictures, to_image
from generate.gpt import GPT, Block
from generate.likelihood import nats_a_token
from generate.losses import next_token_loss
from generate.presets import TransformerSettings
from generate.train import Figures, Stage, Stopwatch, fingerprint, finish, fit_stage, up_to_date
from generate.vqgan import VQGAN
from segment.device import choose_device, has_fast_bfloat16

CHECKED = 64  # windows of the held-out paintings that measure the likelihood


@dataclass(frozen=True)
class TransformerResult:
    """What one training of the transformer did."""

    model: str  # its folder
    paintings: int  # learnt from
    held_out: int
    steps: int  # of the weights kept
    seconds: float
    bits_per_token: float  # on the paintings learnt from, over the last tenth
    held_out_bits_per_token: float | None  # None without held-out paintings
    trained: bool  # False: the model was up to date


@dataclass(frozen=True)
class Tokens:
    """One painting, cut to tokens in several shifts: each view a (2, h, w) int64 of mask and painting tokens.

    `opened` has another (2, h, w) of mask tokens for each view: with a part unlabelled, and with all of it.
    """

    key: str
    views: tuple[Tensor, ...]
    opened: tuple[Tensor, ...] = ()


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Random windows of random views; item `n` depends on `seed` and `n` alone.

    Args:
        paintings: their tokens.
        side: of a window, in tokens.
        open_part, open_all: shares of the windows whose mask is unlabelled in part, or altogether.
    """

    def __init__(
        self,
        paintings: Sequence[Tokens],
        side: int,
        seed: int,
        open_part: float = 0.0,
        open_all: float = 0.0,
    ) -> None:
        self.paintings, self.side, self.seed = paintings, side, seed
        self.open_part, self.open_all = open_part, open_all

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Mask and painting tokens of item n, (side * side,) each."""
        around, place = divmod(n, len(self.paintings))
        order = np.random.default_rng((self.seed, 2, around)).permutation(len(self.paintings))
        chance = np.random.default_rng((self.seed, 3, n))
        painting = self.paintings[int(order[place])]
        number = int(chance.integers(len(painting.views)))
        view = painting.views[number]
        drawn = float(np.random.default_rng((self.seed, 7, n)).random())
        if drawn < self.open_part + self.open_all:
            mask = painting.opened[number][0 if drawn < self.open_part else 1]
            view = torch.stack([mask, view[1]])
        return window(view, self.side, chance)


class TransformerStage(Stage):
    """Next-token cross-entropy; keeps the weights that do best on the held-out paintings."""

    def __init__(
        self, gpt: GPT, config: TransformerSettings, mark: str, held_out: Sequence[Tokens], codes: int
    ) -> None:
        super().__init__(config, mark)
        self.gpt, self.transformer, self.codes = gpt, config, codes
        self.checks = held_out_windows(held_out, config.window, config.seed) if held_out else None
        self.best = math.inf  # nats a token on the held-out paintings
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}

    def losses(self, batch: tuple[Tensor, Tensor]) -> Figures:
        mask, painting = batch  # (B, n) each
        shown = painting
        if self.transformer.token_dropout:
            share = 2 * self.transformer.token_dropout * torch.rand(len(painting), 1, device=painting.device)
            other = torch.rand(painting.shape, device=painting.device) < share
            shown = torch.where(other, torch.randint_like(painting, self.codes), painting)
        logits = self.gpt(torch.cat([mask, shown[:, :-1]], dim=1))  # (B, 2 n - 1, V)
        return {"loss": next_token_loss(logits, painting)}

    def main_optimizer(self) -> Optimizer:
        decayed = {f"{name}.weight" for name, part in self.gpt.named_modules() if isinstance(part, nn.Linear)}
        named = dict(self.gpt.named_parameters())
        groups = [
            {
                "params": [named[n] for n in named if n in decayed],
                "weight_decay": self.transformer.weight_decay,
            },
            {"params": [named[n] for n in named if n not in decayed], "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=self.config.lr, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def stretch_end(self) -> None:
        """Measure the held-out likelihood, keep the best weights, and say when it no longer gets better."""
        if self.checks is None:
            return
        self.gpt.eval()
        nats = nats_a_token(self.gpt, *self.checks)
        self.gpt.train()
        self.history.append({"step": self.done, "held_out": nats})
        if nats < self.best:
            self.best, self.best_step = nats, self.done
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.gpt.state_dict().items()
            }
        stale = (self.done - self.best_step) // self.config.save_every
        if self.transformer.patience and stale >= self.transformer.patience:
            self.finished = True
            note(f"stopped at step {self.done}: no better on held-out paintings since step {self.best_step}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = {"nats": self.best, "step": self.best_step, "weights": self.best_weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        best = checkpoint["best"]
        self.best, self.best_step, self.best_weights = best["nats"], best["step"], best["weights"]


def window(view: Tensor, side: int, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random window of a (2, h, w) view: mask and painting tokens, (side * side,) each."""
    top = int(chance.integers(view.shape[1] - side + 1))
    left = int(chance.integers(view.shape[2] - side + 1))
    mask, painting = view[:, top : top + side, left : left + side].flatten(1).unbind(0)
    return mask, painting


def held_out_windows(paintings: Sequence[Tokens], side: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same CHECKED windows every time, of the unshifted views: mask and painting tokens, (N, n) each."""
    chance = np.random.default_rng((seed, 4))
    drawn = [window(paintings[n % len(paintings)].views[0], side, chance) for n in range(CHECKED)]
    return torch.stack([mask for mask, _ in drawn]), torch.stack([painting for _, painting in drawn])


def train_transformer(
    workspace: Workspace, config: TransformerSettings, device: str = "auto", again: bool = False
) -> TransformerResult:
    """Train models/transformer on every painting that has a shifted mask, but for those in val.txt.

    A model of the same codes, pictures and settings is up to date and stays; a killed run goes on.

    Args:
        again: train afresh even so.

    Raises:
        UserError: no codes yet, codes that do not fit each other, no shifted masks, masks that do not fit, fewer
            paintings than the batch, one smaller than the window, a loss that is not finite.
    """
    watch, folder = Stopwatch(), workspace.model("transformer")
    painting_codes, a = load_vqgan(workspace.model("painting-codes"), "tool generate train painting")
    mask_codes, b = load_vqgan(workspace.model("mask-codes"), "tool generate train mask")
    _check_codes(workspace, painting_codes, mask_codes)
    codes = {"painting-codes": a.digest, "mask-codes": b.digest}
    crop = config.window * painting_codes.config.downsampling
    masks = load_masks(workspace, config.smallest_side, crop, mask_codes.config.in_channels)
    by_key = {one.key: one for one in load_pictures(workspace, config.smallest_side, crop)}
    pairs = [(by_key[mask.key], mask) for mask in masks]
    kept = held_out_keys(workspace)
    digests = [[one.key, painting.digest, one.digest, one.key in kept] for painting, one in pairs]
    mark = fingerprint(config.deciding(), digests, codes)
    found = up_to_date(folder, mark, again)
    if found is not None:
        return TransformerResult(
            **{**found["figures"], "model": str(folder), "trained": False, "seconds": 0.0}
        )
    learnt = [pair for pair in pairs if pair[0].key not in kept]
    if len(learnt) < config.batch:
        raise UserError(
            f"{len(learnt)} paintings to learn from are fewer than the batch of {config.batch}; "
            f"use --batch {max(1, len(learnt))} or push more paintings"
        )
    tokens = cut_to_tokens(pairs, painting_codes, mask_codes, config, device)
    torch.manual_seed(config.seed)
    gpt = GPT(config.gpt(max(painting_codes.config.codebook_size, mask_codes.config.codebook_size)))
    if config.aligned_start:
        start_aligned(gpt)
    held_out = [one for one in tokens if one.key in kept]
    windows = Windows(
        [one for one in tokens if one.key not in kept],
        config.window,
        config.seed,
        config.open_part,
        config.open_all,
    )
    stage = TransformerStage(gpt, config, mark, held_out, painting_codes.config.codebook_size)
    fit_stage(stage, windows, folder, device, "Training the transformer")
    if stage.best_weights:
        stage.gpt.load_state_dict(stage.best_weights)
    result = TransformerResult(
        model=str(folder),
        paintings=len(windows.paintings),
        held_out=len(held_out),
        steps=stage.best_step or stage.done,
        seconds=watch.seconds(),
        bits_per_token=stage.latest("loss") / math.log(2),
        held_out_bits_per_token=stage.best / math.log(2) if held_out else None,
        trained=True,
    )
    figures = {key: value for key, value in asdict(result).items() if key != "model"}
    about = {"train": asdict(config), "mark": mark, "codes": codes, "figures": figures}
    save_model(folder, stage.gpt, about)
    workspace.save_report("generate-train-transformer", {**figures, "history": stage.history})
    finish(folder)
    return result


def start_aligned(gpt: GPT, size: float = 0.05, reach: float = 0.7, sharpness: float = 3.0) -> None:
    """Begin with half of the first block's heads looking at the mask token of the place that comes next.

    Learned positions start without any notion of place, and finding out which mask token belongs to a painting
    token takes a small transformer longer than the whole of a CPU's training. So the position that predicts
    painting token n gets the embedding of mask token n's (random Fourier features of row and column), and keys
    start equal to queries, which makes equal positions attend to each other. Everything stays trainable.

    Args:
        size: scale of the features; token embeddings start at 0.02.
        reach: scale of the features' frequencies, in radians a token: the smaller, the wider the look.
        sharpness: factor on the queries and keys of those heads.
    """
    c, side = gpt.config, gpt.config.window
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    angles = place.float() @ (torch.randn(2, c.width // 2) * reach)
    features = torch.cat([angles.sin(), angles.cos()], 1) * size  # (side side, width)
    half = c.heads // 2 * (c.width // c.heads)
    with torch.no_grad():
        gpt.pos_emb[0, : len(place)] = features
        gpt.pos_emb[0, len(place) :] = features.roll(-1, 0) + 0.5 * size * torch.randn(c.width)
        attention = cast(Block, gpt.blocks[0]).attn
        attention.query.weight[:half] *= sharpness
        attention.key.weight[:half] = attention.query.weight[:half]


@torch.inference_mode()
def cut_to_tokens(
    pairs: Sequence[tuple[Picture, Picture]],
    painting_codes: VQGAN,
    mask_codes: VQGAN,
    config: TransformerSettings,
    device: str,
) -> list[Tokens]:
    """Tokens of every (painting, mask), once for the whole training.

    Each painting is cut as a whole, as a mask is when it is painted from, in `config.views` shifts of less than a
    token; the first is unshifted. With `config.flip` each shift is also mirrored. Where the config opens masks, each
    view also gets the tokens of its mask with a random part unlabelled, and of one that says nothing.
    """
    where = choose_device(device)
    painting_codes.to(where), mask_codes.to(where)
    factor = painting_codes.config.downsampling
    side = config.window * factor
    chance = np.random.default_rng((config.seed, 5))
    opens = config.open_part + config.open_all > 0
    blank: dict[tuple[int, int], Tensor] = {}  # by size: masks that say nothing
    cut = []
    total = len(pairs) * config.views
    with (
        progress("Cutting the paintings to tokens", total) as advance,
        torch.autocast(where.type, torch.bfloat16, enabled=has_fast_bfloat16(where)),
    ):
        for painting, mask in pairs:
            pixels, ids, views, opened = painting.read(), mask.read(), [], []
            for number in range(config.views):
                room = [min(factor, length - side + 1) for length in painting.size]
                top, left = (0, 0) if number == 0 else (int(chance.integers(one)) for one in room)
                for mirrored in (False, True) if config.flip else (False,):
                    both = [_shifted(one, top, left, factor, mirrored) for one in (pixels, ids)]
                    x = to_image(both[0].permute(2, 0, 1)[None].to(where))
                    drawn = painting_codes.encode(x).indices[0]  # (h, w)
                    asked = mask_codes.encode_mask(both[1].long()[None].to(where)).indices[0]  # (h, w)
                    views.append(torch.stack([asked, drawn]).cpu().clone())
                    if opens:
                        part = torch.from_numpy(open_part(both[1].numpy(), chance))
                        some = mask_codes.encode_mask(part.long()[None].to(where)).indices[0]
                        size = (some.shape[0], some.shape[1])
                        if size not in blank:
                            blank[size] = unconditional_tokens(mask_codes, size)[0]
                        opened.append(torch.stack([some, blank[size]]).cpu().clone())
                advance()
            cut.append(Tokens(painting.key, tuple(views), tuple(opened)))
    return cut


def _shifted(pixels: NDArray[np.uint8], top: int, left: int, factor: int, mirrored: bool) -> Tensor:
    """From (top, left) as many whole tokens as fit."""
    height = (pixels.shape[0] - top) // factor * factor
    width = (pixels.shape[1] - left) // factor * factor
    part = pixels[top : top + height, left : left + width]
    return torch.from_numpy((part[:, ::-1] if mirrored else part).copy())


def _check_codes(workspace: Workspace, painting: VQGAN, mask: VQGAN) -> None:
    ours, theirs = painting.config.downsampling, mask.config.downsampling
    if ours != theirs:
        raise UserError(
            f"{workspace.root}: painting codes have {ours} pixels a token, mask codes {theirs}; "
            "train both with the same --channel-multipliers"
        )
