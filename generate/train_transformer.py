"""Training of the transformer: painting tokens, given the mask's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from annotate.errors import UserError
from annotate.lock import one_training
from annotate.progress import Stopwatch, note
from annotate.workspace import Workspace
from generate.checkpoint import load_vqgan, save_model
from generate.data import held_out_keys, load_masks, load_pictures
from generate.gpt import GPT, Block
from generate.grid import draw_windows
from generate.likelihood import nats_a_token
from generate.losses import next_token_loss
from generate.presets import TransformerSettings
from generate.tokens import Tokens, Windows, cut_to_tokens, held_out_windows
from generate.train import Figures, Stage, fit_stage
from generate.training_state import Basis, finish, up_to_date
from generate.vqgan import VQGAN
from generate.working_copies import CopiedAdamW

# Weights times steps, behind which half a minute of compiling has come back: 0.1 s a step for 300 million weights.
WORTH_COMPILING = 2e11


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


class TransformerStage(Stage):
    """Next-token cross-entropy; keeps the weights that do best on the held-out paintings."""

    def __init__(
        self, gpt: GPT, config: TransformerSettings, basis: Basis, held_out: Sequence[Tokens], codes: int
    ) -> None:
        super().__init__(config, basis)
        self.gpt, self.transformer, self.codes = gpt, config, codes
        self.checks = held_out_windows(held_out, config.window, config.seed) if held_out else None
        self.best = math.inf  # nats a token on the held-out paintings
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}
        self.draw: Callable[[GPT], None] | None = None

    def draw_grid(self) -> None:
        if self.draw is not None:
            self.gpt.eval()
            self.draw(self.gpt)
            self.gpt.train()

    def losses(self, batch: tuple[Tensor, Tensor]) -> Figures:
        mask, painting = batch  # (B, n) each
        shown = painting
        if self.transformer.token_dropout:
            share = 2 * self.transformer.token_dropout * torch.rand(len(painting), 1, device=painting.device)
            other = torch.rand(painting.shape, device=painting.device) < share
            shown = torch.where(other, torch.randint_like(painting, self.codes), painting)
        # the last token foretells nothing, but products of a round length are quicker
        count = mask.shape[1]
        tokens = torch.cat([mask, shown], dim=1)
        logits = self.optimizer.call(self.gpt, tokens, slice(count - 1, -1))  # (B, n, V)
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
        self.optimizer = CopiedAdamW(groups, lr=self.config.lr, betas=(0.9, 0.95))
        return self.optimizer

    def on_train_start(self) -> None:
        """Where one process computes in bfloat16 on a CPU, matrices get copies; a state that it goes on from is loaded."""
        alone = self.trainer.world_size == self.config.accumulate == 1 and not self.config.clip
        if alone and self.device.type == "cpu" and self.trainer.precision == "bf16-mixed":
            weights = sum(one.numel() for one in self.gpt.parameters())
            # by all steps, not those that are left: a run that was killed goes on to the same losses
            worth = weights * self.config.steps > WORTH_COMPILING
            self.optimizer.copy_matrices(self.gpt, compiled=worth)

    def leaves(self) -> list[Tensor]:
        return self.optimizer.leaves()

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
    pixels = painting_codes.config.downsampling
    crop, smaller = config.window * pixels, partial(config.smaller, pixels=pixels)
    masks = load_masks(workspace, config.smallest_side, crop, mask_codes.config.in_channels, smaller)
    by_key = {one.key: one for one in load_pictures(workspace, config.smallest_side, crop, smaller)}
    pairs = [(by_key[mask.key], mask) for mask in masks]
    kept = held_out_keys(workspace)
    digests = [[one.key, painting.digest, one.digest, one.key in kept] for painting, one in pairs]
    basis = Basis(config.deciding(), [digests, codes])
    with one_training(folder):
        found = up_to_date(folder, basis.mark, again)
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
        stage = TransformerStage(gpt, config, basis, held_out, painting_codes.config.codebook_size)
        shown = held_out or windows.paintings
        stage.draw = lambda gpt: draw_windows(workspace, shown, gpt, painting_codes, config)
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
        about = {"train": asdict(config), "mark": basis.mark, "codes": codes, "figures": figures}
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


def _check_codes(workspace: Workspace, painting: VQGAN, mask: VQGAN) -> None:
    ours, theirs = painting.config.downsampling, mask.config.downsampling
    if ours != theirs:
        raise UserError(
            f"{workspace.root}: painting codes have {ours} pixels a token, mask codes {theirs}; "
            "train both with the same --channel-multipliers"
        )
