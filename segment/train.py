"""Training on the hand masks with Lightning: resumable, reproducible, and quiet on stdout."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation.deeplabv3 import ASPPPooling

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.files import whole_file
from annotate.progress import note, progress
from annotate.workspace import Workspace
from segment.config import TrainConfig
from segment.data import Crops, Sample, Stretches, class_counts, class_weights, load_samples, normalise
from segment.device import choose_device, has_fast_bfloat16
from segment.model import build, initialise, save, saved_config
from segment.scores import confusion, score

ENOUGH = 20  # hand masks from which on some are held out for validation
STATE = "training.ckpt"


@dataclass(frozen=True)
class TrainResult:
    """What one training did."""

    model: str  # its folder
    masks: int
    held_out: int
    steps: int
    seconds: float
    loss: float  # mean over the last stretch
    miou: float | None  # on the held-out masks; None without any
    trained: bool  # False: the model was up to date


@dataclass(frozen=True)
class Fitted:
    """A trained network and its last figures."""

    net: nn.Module
    loss: float
    miou: float | None


def train(
    workspace: Workspace, config: TrainConfig, device: str = "auto", again: bool = False
) -> TrainResult:
    """Train models/deeplab on the hand masks.

    A model of the same masks, classes and settings is up to date and stays; a killed run goes on.

    Args:
        again: train afresh even so.

    Raises:
        UserError: no usable masks, weights that are not there, no such device, a loss that is not finite, or
            too little memory.
    """
    started = time.monotonic()
    where = choose_device(device)
    classes = workspace.settings().classes
    samples = load_samples(workspace, classes, config.smallest_side)
    folder = workspace.model("deeplab")
    mark = fingerprint(samples, classes, config)
    if again:
        (folder / STATE).unlink(missing_ok=True)
    saved = saved_config(workspace)
    if saved is not None and saved.get("fingerprint") == mark and not again and not (folder / STATE).exists():
        os.utime(folder / "model.safetensors")  # newer than the masks, which are the ones it has learnt from
        figures = saved["figures"]
        return TrainResult(
            str(folder),
            len(samples),
            figures["held_out"],
            config.steps,
            0.0,
            figures["loss"],
            figures["miou"],
            False,
        )
    learn, check = split(samples, config)
    fitted = fit(learn, check, classes, config, where, folder, mark)
    figures = {"loss": fitted.loss, "miou": fitted.miou, "masks": len(samples), "held_out": len(check)}
    about = {
        "architecture": config.architecture,
        "smallest_side": config.smallest_side,
        "classes": classes.as_list(),
        "train": asdict(config),
        "fingerprint": mark,
        "figures": figures,
    }
    save(workspace, fitted.net, about)
    (folder / STATE).unlink(missing_ok=True)
    seconds = round(time.monotonic() - started, 1)
    return TrainResult(
        str(folder), len(samples), len(check), config.steps, seconds, fitted.loss, fitted.miou, True
    )


def fingerprint(samples: Sequence[Sample], classes: ClassTable, config: TrainConfig) -> str:
    """What the trained weights depend on; a model with the same fingerprint is up to date."""
    settings = asdict(config) | {"workers": 0}
    table = [[one.name, one.id] for one in classes.classes]
    text = json.dumps([settings, table, [[one.key, one.digest] for one in samples]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split(samples: Sequence[Sample], config: TrainConfig) -> tuple[list[Sample], list[Sample]]:
    """(samples to learn from, samples held out); none are held out of a small set."""
    count = round(len(samples) * config.held_out) if len(samples) >= ENOUGH else 0
    order = np.random.default_rng((config.seed, 3)).permutation(len(samples)).tolist()
    out = set(order[:count])
    learn = [one for n, one in enumerate(samples) if n not in out]
    return learn, [samples[n] for n in sorted(out)]


def fit(
    learn: Sequence[Sample],
    check: Sequence[Sample],
    classes: ClassTable,
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    mark: str,
    title: str = "Training DeepLabV3",
) -> Fitted:
    """Train one network; its state and logs lie in `folder`, and a state with the same `mark` is gone on from.

    Raises:
        UserError: as `train`.
    """
    L.seed_everything(config.seed, verbose=False)
    net = build(config.architecture, len(classes))
    state = folder / STATE
    resume = _same_run(state, mark)
    if not resume:
        initialise(net, config.architecture, config.init)
    module = Training(net, learn, classes, config, mark)
    crops = DataLoader(
        Crops(learn, config),
        batch_size=config.batch,
        sampler=Stretches(config, lambda: module.global_step),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    held_out = DataLoader(_Whole(check), batch_size=1) if check else None
    with _quiet(), progress(title, config.steps) as advance:
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if has_fast_bfloat16(device) else "32-true",
            max_steps=config.steps,
            logger=CSVLogger(folder, name="logs"),
            log_every_n_steps=min(10, config.save_every, config.steps),
            callbacks=[_Bar(advance), _State(state)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,  # by `_State`, which replaces the one that Lightning would add
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, crops, held_out, ckpt_path=state if resume else None, weights_only=True)
        except _DivergedError as error:
            raise UserError(
                f"training stopped: {error}; lower --lr (now {config.lr:g}); the last good state stays in {folder}"
            ) from error
        except RuntimeError as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise UserError(
                    f"out of memory on {device.type}: lower --batch (now {config.batch}) "
                    f"or --crop (now {config.crop})"
                ) from error
            raise
    return Fitted(net.eval(), module.loss, module.miou)


class Training(L.LightningModule):
    """Cross-entropy of both heads, AdamW, and a learning rate that warms up and then falls polynomially."""

    def __init__(
        self, net: nn.Module, learn: Sequence[Sample], classes: ClassTable, config: TrainConfig, mark: str
    ) -> None:
        super().__init__()
        self.net, self.config, self.mark, self.names = net, config, mark, classes.names
        counts = class_counts(learn, len(classes))
        self.register_buffer("weights", class_weights(counts, config.balance), persistent=False)
        self.weights: Tensor
        self.losses: deque[float] = deque(maxlen=config.save_every)
        self.loss = 0.0  # mean over the last stretch
        self.miou: float | None = None
        self._matrix = np.zeros((len(classes), len(classes) + 1), np.int64)

    def on_train_start(self) -> None:
        self.net.to(memory_format=torch.channels_last)
        if self.config.batch == 1:  # the pooled branch has one value a channel then: no statistics of it
            for module in self.net.modules():
                if isinstance(module, ASPPPooling):
                    module.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)  # dropout, the same after a resume
        pixels, labels = batch  # (B, 3, c, c) uint8, (B, c, c)
        logits = self.net(normalise(pixels))  # of both heads, (B, K, c, c)
        loss = self._loss(logits["out"], labels) + self.config.aux * self._loss(logits["aux"], labels)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise _DivergedError(f"the loss is {value} at step {self.global_step + 1} of {self.config.steps}")
        self.losses.append(value)
        self.log("loss", value)
        return loss

    def on_train_epoch_end(self) -> None:
        self.loss = float(np.mean(self.losses))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy; 0 where a batch has no labelled pixel."""
        every = F.cross_entropy(
            logits.float(), labels, self.weights, ignore_index=UNLABELLED, reduction="sum"
        )
        known = labels[labels != UNLABELLED]
        return every / self.weights[known].sum().clamp(min=1e-6)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), 5.0))
        if not np.isfinite(norm):
            raise _DivergedError(
                f"the gradient is {norm} at step {self.global_step + 1} of {self.config.steps}"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        logits = self.net(normalise(batch[0]))["out"]  # (1, K, h, w)
        predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        self._matrix += confusion(batch[1][0].cpu().numpy(), predicted, len(self.names))

    def on_validation_epoch_end(self) -> None:
        self.miou = score(self._matrix, self.names).miou
        self._matrix = np.zeros_like(self._matrix)
        self.log("miou", self.miou)

    def configure_optimizers(self) -> Any:
        config = self.config
        decayed = [one for one in self.net.parameters() if one.ndim > 1]
        plain = [one for one in self.net.parameters() if one.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        warmup = max(1, round(config.steps * config.warmup))

        def factor(step: int) -> float:
            return float(min((step + 1) / warmup, 1.0) * (1 - step / (config.steps + 1)) ** config.power)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"mark": self.mark, "losses": list(self.losses), "miou": self.miou}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses.extend(checkpoint["losses"])
        self.loss = float(np.mean(self.losses))
        self.miou = checkpoint["miou"]


class _Whole(Dataset[tuple[Tensor, Tensor]]):
    """Whole paintings with their labels, for validation."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return self.samples[n].pixels, self.samples[n].labels


class _DivergedError(Exception):
    """The loss or its gradient is not finite."""


class _Bar(L.Callback):
    """Moves the progress bar."""

    def __init__(self, advance: Callable[..., None]) -> None:
        self.advance = advance

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.advance(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        text = f"loss {np.mean(list(pl_module.losses)[-20:]):.3f}"
        self.advance(1, note=text if pl_module.miou is None else f"{text}  mIoU {100 * pl_module.miou:.1f}")


class _State(Checkpoint):
    """Writes the state after every stretch, whole or not at all; Lightning calls a Checkpoint after the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with whole_file(self.path) as temporary:
            trainer.save_checkpoint(temporary)


def _same_run(state: Path, mark: str) -> bool:
    """Is there a state of this very run."""
    if not state.exists():
        return False
    try:
        found = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        note(f"{state}: damaged ({str(error).splitlines()[0]}); training starts afresh")
        return False
    return bool(found.get("mark") == mark)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners, tips and warnings off: the progress bar says what there is to say."""
    log = logging.getLogger("lightning.pytorch")
    fabric = logging.getLogger("lightning.fabric")
    levels = log.level, fabric.level
    log.setLevel(logging.ERROR)
    fabric.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step.*")
            yield
    finally:
        log.setLevel(levels[0])
        fabric.setLevel(levels[1])
