"""Training of the two codebooks: a VQGAN on paintings, and one on masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset

from annotate.errors import UserError
from annotate.lock import one_training
from annotate.progress import Stopwatch, note
from annotate.workspace import Workspace
from generate.augment import augment
from generate.checkpoint import save_model
from generate.codebook import CodebookUse, k_means
from generate.conditioning import OPEN, OpenedMasks
from generate.config import VQGANConfig
from generate.data import Crops, Picture, held_out_keys, load_masks, load_pictures, to_image
from generate.discriminator import PatchDiscriminator, hinge_loss
from generate.expand import expand
from generate.grid import SHOWN, draw_masks, draw_paintings
from generate.losses import adversarial_sum, balanced_weights, class_wise_loss, detail_loss, pixel_loss
from generate.perceptual import find_perceptual, has_perceptual
from generate.presets import CodesSettings, MaskCodesSettings, PaintingCodesSettings
from generate.texture import texture_loss
from generate.train import Figures, Stage, fit_stage
from generate.training_state import Basis, finish, up_to_date
from generate.vqgan import VQGAN

LOST = 0.1  # IoU of a class through the mask codes, below which it is as good as gone
STARTERS = 64  # crops whose vectors k-means starts the codebook from


@dataclass(frozen=True)
class CodesResult:
    """What one training of a codebook did."""

    model: str  # its folder
    pictures: int
    steps: int
    seconds: float
    loss: float  # the part that measures the reconstruction, over the last tenth
    used: int  # rows of the codebook that are used
    perplexity: float
    trained: bool  # False: the model was up to date


class CodesStage(Stage):
    """A VQGAN in training. A subclass says how a batch becomes input and what its reconstruction costs."""

    def __init__(self, net: VQGAN, crops: Dataset[Any], config: CodesSettings, basis: Basis) -> None:
        super().__init__(config, basis)
        self.net, self.crops, self.codes = net, crops, config
        self.use = CodebookUse(net.config.codebook_size)
        self._vectors = torch.empty(0)

    def input(self, batch: Sequence[Tensor]) -> Tensor:
        """What the encoder gets, (B, C, c, c)."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, codebook loss); nothing is quantised before the codebook has started."""
        if self.done < self.codes.start_codebook:
            z = self.net.prequantised(x)
            return self.net.decode(z), z.new_zeros(())
        if self.done == self.codes.start_codebook > 0 and self.starts_step:
            self._start_codebook()
        with torch.set_grad_enabled(not self.settled()):
            z = self.net.prequantised(x)
            quantized = self.net.quantize(z)
        self.use.count(quantized.indices)
        self._vectors = _rows(z)
        return self.net.decode(quantized.z), quantized.loss

    def settled(self) -> bool:
        """Do encoder and codebook stay as they are from here on."""
        return False

    def phase(self) -> int:
        return int(self.done >= self.codes.start_codebook)

    def after_step(self) -> None:
        every, start = self.codes.revive_every, self.codes.start_codebook
        late = self.settled() or self.done >= 0.8 * self.config.steps
        if every and self.done % every == 0 and self.done > start and not late:
            self.use.revive(self.net.quantize.embedding.weight.data, self._vectors)
            self._agree()

    def stretch_end(self) -> None:
        """Log how much of the codebook is used."""
        if self.done > self.codes.start_codebook:
            used, perplexity = float(self.use.used()), round(self.use.perplexity(), 1)
            self.history.append({"step": self.done, "used": used, "perplexity": perplexity})

    def main_optimizer(self) -> Optimizer:
        return Adam(self.net.parameters(), self.config.lr, betas=self.codes.betas, fused=True)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        self.catch_up()  # k-means needs finite vectors
        batch = [torch.stack(part) for part in zip(*(self.crops[n] for n in range(STARTERS)), strict=True)]
        vectors = [
            _rows(self.net.prequantised(self.input([part.to(self.device) for part in parts])))
            for parts in zip(*(torch.split(part, 8) for part in batch), strict=True)
        ]
        weight = self.net.quantize.embedding.weight
        weight.copy_(k_means(torch.cat(vectors), len(weight)))
        self._agree()

    def _agree(self) -> None:
        """Where several processes train together, all take the first one's codebook."""
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(self.net.quantize.embedding.weight.data, 0)


class PaintingStage(CodesStage):
    """L1, the pyramid's L1, the texture, the perceptual loss where there are weights, the adversarial one if asked for."""

    def __init__(
        self, net: VQGAN, crops: Crops, config: PaintingCodesSettings, basis: Basis, grid: Path
    ) -> None:
        super().__init__(net, crops, config, basis)
        self.painting, self.grid = config, grid
        self.shown = [row[0] for row in crops.rows[:SHOWN]]
        found = find_perceptual(config.perceptual) if config.perceptual_weight else None
        self.perceptual = (found,)  # in a tuple, so that its weights stay out of the saved state
        self.show = augment if config.augment else _as_it_is  # what the discriminator is shown
        self._seen: tuple[Tensor, Tensor] | None = None
        self.discriminator: nn.Module | None = None
        if config.adversarial:
            self.discriminator = PatchDiscriminator(config.discriminator_channels)

    def input(self, batch: Sequence[Tensor]) -> Tensor:
        return to_image(batch[0])

    @property
    def judged(self) -> bool:
        """Does the discriminator take part in this step."""
        return self.discriminator is not None and self.done >= self.painting.adversarial_start

    def settled(self) -> bool:
        return self.done >= self.painting.texture_start

    def phase(self) -> int:
        return super().phase() + 2 * self.judged + 4 * self.settled()

    def losses(self, batch: Sequence[Tensor]) -> Figures:
        x = self.input(batch)
        y, codebook = self.reconstruct(x)
        y = y.float()
        if self.discriminator is None or not self.judged:
            loss, l1 = self._distance(y, x)
            return {"loss": loss + codebook, "l1": l1, "codebook": codebook}
        seen = y.detach().requires_grad_()
        loss, l1 = self._distance(seen, x)
        fooled = -cast(Tensor, self.discriminator(self.show(seen))).float().mean()
        loss = adversarial_sum(
            y, seen, loss, fooled, self.painting.adversarial, self.net.decoder.conv_out.weight
        )
        self._seen = (x, y.detach())
        return {"loss": loss + codebook, "l1": l1, "codebook": codebook}

    def _distance(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the reconstruction costs, its plain L1)."""
        l1 = (y - x).abs().mean()
        loss = l1
        if self.painting.detail:
            loss = loss + self.painting.detail * detail_loss(y, x)
        if self.settled():
            loss = loss + self.painting.texture * texture_loss(y, x)
        if self.perceptual[0] is not None:
            loss = loss + self.painting.perceptual_weight * self.perceptual[0].to(y.device)(y, x)
        return loss, l1

    def after_step(self) -> None:
        """The discriminator's step, on the batch that the VQGAN has just learnt from."""
        super().after_step()
        if self._seen is None or self.done <= self.painting.adversarial_start:
            return
        net, (x, y) = cast(nn.Module, self.discriminator), self._seen
        optimizer = cast(Any, self.optimizers())[1]
        loss = hinge_loss(net(self.show(x)).float(), net(self.show(y)).float())
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.done)
        optimizer.step()
        self.figure("discriminator", loss)

    def configure_optimizers(self) -> Any:
        if self.discriminator is None:
            return self.main_optimizer()
        other = Adam(self.discriminator.parameters(), self.config.lr, betas=self.codes.betas, fused=True)
        return [self.main_optimizer(), other]

    def draw_grid(self) -> None:
        self.net.eval()
        draw_paintings(self.grid, self.shown, self.net)
        self.net.train()


class MaskStage(CodesStage):
    """Cross-entropy over the classes that occur. The net in training has only their channels; see `expand`."""

    def __init__(
        self,
        net: VQGAN,
        crops: Dataset[Any],
        config: MaskCodesSettings,
        basis: Basis,
        present: Sequence[int],
        weights: Tensor | None,
    ) -> None:
        super().__init__(net, crops, config, basis)
        table = torch.zeros(256, dtype=torch.int64)
        table[list(present)] = torch.arange(len(present))
        self.register_buffer("channel", table, persistent=False)  # of a shifted id
        self.channel: Tensor
        self.class_wise = config.loss == "class-wise"
        self.register_buffer("weights", weights, persistent=False)  # of a channel's pixels
        self.weights: Tensor | None
        count = len(present)
        # pixels by class and what the codes make of them, in the last tenth
        self.register_buffer("seen", torch.zeros(count * count, dtype=torch.int64), persistent=False)
        self.seen: Tensor
        self.draw: Callable[[VQGAN], None] | None = None

    def draw_grid(self) -> None:
        if self.draw is not None:
            self.draw(self.net)

    def input(self, batch: Sequence[Tensor]) -> Tensor:
        channels = self.channel[batch[0].long()]  # (B, c, c)
        one_hot = torch.nn.functional.one_hot(channels, self.net.config.in_channels)
        return one_hot.permute(0, 3, 1, 2).float().contiguous()  # (B, K, c, c)

    def losses(self, batch: Sequence[Tensor]) -> Figures:
        logits, codebook = self.reconstruct(self.input(batch))
        target = self.channel[batch[0].long()]
        if self.class_wise:
            cost = class_wise_loss(logits.float(), target)
        else:
            cost = pixel_loss(logits.float(), target, self.weights)
        said = logits.detach().argmax(1)
        if self.done >= 0.9 * self.config.steps:
            pairs = (target * logits.shape[1] + said).flatten()
            self.seen += torch.bincount(pairs, minlength=len(self.seen))
        right = (said == target).float().mean()
        return {"loss": cost + codebook, "cross_entropy": cost, "right": right, "codebook": codebook}

    def kept(self) -> Tensor:
        """(K,) IoU of each channel through the codes; NaN where there was nothing of it."""
        seen = self.seen.view(self.net.config.in_channels, -1).double()
        return seen.diag() / (seen.sum(0) + seen.sum(1) - seen.diag())


def train_painting_codes(
    workspace: Workspace, config: PaintingCodesSettings, device: str = "auto", again: bool = False
) -> CodesResult:
    """Train models/painting-codes on every painting of the workspace, but for those in masks/shifted/val.txt.

    A model of the same paintings and settings is up to date and stays; a killed run goes on.

    Args:
        again: train afresh even so.

    Raises:
        UserError: no paintings, fewer than the batch, one smaller than the crop, a loss that is not finite.
    """
    watch, folder = Stopwatch(), workspace.model("painting-codes")
    pictures = _learnt(workspace, load_pictures(workspace, config.smallest_side, config.crop, config.smaller))
    digests = [[[one.key, one.digest] for one in pictures]]
    plain, seen = (Basis({**config.deciding(), **more}, digests) for more in ({}, {"perceptual": "VGG16"}))
    basis = seen if config.perceptual_weight and has_perceptual(config.perceptual) else plain
    # what is trained does not become out of date by weights that torchvision has fetched since
    fitting = (plain, seen) if config.perceptual == "auto" else (basis,)
    with one_training(folder):
        found = next(filter(None, [up_to_date(folder, one.mark, again) for one in fitting]), None)
        if found is not None:
            return CodesResult(**{**found["figures"], "model": str(folder), "trained": False, "seconds": 0.0})
        crops = _crops(pictures, config)
        torch.manual_seed(config.seed)
        grid = workspace.reports / "generate-train-painting.png"
        stage = PaintingStage(VQGAN(config.vqgan()), crops, config, basis, grid)
        fit_stage(stage, crops, folder, device, "Training the painting codes")
        losses = ["l1", *(["laplacian"] if config.detail else [])]
        losses += ["texture"] if config.texture_start < config.steps else []
        losses += ["perceptual (VGG16)"] if stage.perceptual[0] is not None else []
        losses += ["adversarial"] if config.adversarial and config.steps > config.adversarial_start else []
        result = _result(folder, stage, "l1", len(pictures), watch)
        _save(workspace, "painting", stage, stage.net, result, {"losses": losses})
        return result


def train_mask_codes(
    workspace: Workspace, config: MaskCodesSettings, device: str = "auto", again: bool = False
) -> CodesResult:
    """Train models/mask-codes on every shifted mask of train.txt. Otherwise as `train_painting_codes`.

    Raises:
        UserError: no shifted masks yet, one that does not fit its painting, an id that has no channel.
    """
    watch, folder = Stopwatch(), workspace.model("mask-codes")
    masks = _learnt(
        workspace, load_masks(workspace, config.smallest_side, config.crop, config.n_labels, config.smaller)
    )
    basis = Basis(config.deciding(), [[[one.key, one.digest] for one in masks]])
    with one_training(folder):
        found = up_to_date(folder, basis.mark, again)
        if found is not None:
            return CodesResult(**{**found["figures"], "model": str(folder), "trained": False, "seconds": 0.0})
        crops = _crops(masks, config)
        pixels = np.sum([np.bincount(one.read().ravel(), minlength=256) for one in masks], axis=0)
        pixels[OPEN] = 0  # the crops say how many are opened
        present = [OPEN, *np.flatnonzero(pixels).tolist()]
        torch.manual_seed(config.seed)
        sizes = config.vqgan().to_dict() | {"in_channels": len(present), "out_channels": len(present)}
        net = VQGAN(VQGANConfig.from_dict(sizes))
        opened = OpenedMasks(crops, config.open_part, config.seed)
        weights = balanced_weights(torch.from_numpy(pixels[present])) if config.loss == "balanced" else None
        stage = MaskStage(net, opened, config, basis, present, weights)
        stage.draw = lambda compact: draw_masks(
            workspace, masks[:SHOWN], expand(compact, present, config.n_labels)
        )
        fit_stage(stage, opened, folder, device, "Training the mask codes")
        result = _result(folder, stage, "cross_entropy", len(masks), watch)
        full = expand(stage.net, present, config.n_labels)
        about = {"losses": [f"{config.loss} cross-entropy"], "shifted_ids": present}
        classes = workspace.settings().classes
        _save(workspace, "mask", stage, full, result, about | {"classes": classes.as_list()})
        kept = dict(zip(present, stage.kept().tolist(), strict=True))
        found_again = [(one.name, kept.get(one.id + 1, 1.0)) for one in classes.classes]
        if lost := ", ".join(f"{name} (IoU {iou:.2f})" for name, iou in found_again if iou < LOST):
            more = "--loss balanced or more --steps" if weights is None else "more --steps or --codebook-size"
            note(f"the codes lose {lost}, which masks then cannot ask for; {more} may keep it")
        return result


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _learnt(workspace: Workspace, pictures: list[Picture]) -> list[Picture]:
    """Without those that are held out to measure by."""
    kept = held_out_keys(workspace)
    return [one for one in pictures if one.key not in kept]


def _crops(pictures: Sequence[Picture], config: CodesSettings) -> Crops:
    if len(pictures) < config.batch:
        raise UserError(
            f"{len(pictures)} pictures are fewer than the batch of {config.batch}; "
            f"use --batch {len(pictures)} or push more paintings"
        )
    return Crops([(one,) for one in pictures], config.crop, config.flip, config.seed)


def _rows(z: Tensor) -> Tensor:
    """(B, E, h, w) -> (B h w, E), float32, without gradient."""
    return z.detach().float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def _result(folder: Path, stage: CodesStage, name: str, pictures: int, watch: Stopwatch) -> CodesResult:
    return CodesResult(
        model=str(folder),
        pictures=pictures,
        steps=stage.done,
        seconds=watch.seconds(),
        loss=stage.latest(name),
        used=stage.use.used(),
        perplexity=round(stage.use.perplexity(), 1),
        trained=True,
    )


def _save(
    workspace: Workspace, name: str, stage: CodesStage, net: VQGAN, result: CodesResult, about: dict[str, Any]
) -> None:
    folder = workspace.model(f"{name}-codes")
    figures = {key: value for key, value in asdict(result).items() if key != "model"}
    extra = {"train": asdict(stage.config), "mark": stage.basis.mark, "figures": figures}
    save_model(folder, net, extra | about)
    report = {**figures, **about, "codebook_size": net.config.codebook_size, "history": stage.history}
    workspace.save_report(f"generate-train-{name}", report)
    finish(folder)
    if result.used < net.config.codebook_size / 4:
        note(f"only {result.used} of {net.config.codebook_size} codebook rows are used: fewer would do")
