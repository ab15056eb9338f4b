"""What Lightning trains: DeepLabV3's loss, schedule, running average, and validation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.models.segmentation.deeplabv3 import ASPPPooling

from annotate.classes import UNLABELLED, ClassTable
from segment.config import LabelConfig, TrainConfig
from segment.data import Sample, class_counts, class_weights, normalise
from segment.model import Segmenter
from segment.predict import predict_map
from segment.scores import confusion, score

PLAIN = LabelConfig(flip=False)


class DivergedError(Exception):
    """The loss or its gradient is not finite."""


class Learner(L.LightningModule):
    """Cross-entropy of both heads, AdamW, a learning rate that warms up and then falls polynomially, and an
    exponential moving average of weights and statistics, which is the model that is validated and kept.

    Args:
        learn: hand-annotated paintings; class weights are read off them.
        check: held-out ones.
        mark: what the saved state is recognised by.
    """

    def __init__(
        self,
        net: nn.Module,
        learn: Sequence[Sample],
        check: Sequence[Sample],
        classes: ClassTable,
        config: TrainConfig,
        mark: str,
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.check, self.classes, self.config, self.mark = list(check), classes, config, mark
        self.average = AveragedModel(net, multi_avg_fn=self._average, use_buffers=True).requires_grad_(False)
        counts = class_counts(learn, len(classes))
        self.register_buffer("weights", class_weights(counts, config.balance), persistent=False)
        self.weights: Tensor
        self.losses: deque[float] = deque(maxlen=config.save_every)
        self.loss = 0.0  # mean over the last stretch
        self.miou: float | None = None
        self.best, self.waited = -1.0, 0  # for --patience

    def on_train_start(self) -> None:
        if self.config.batch == self.config.processes:  # one crop, so one value a channel after pooling:
            for module in self.net.modules():  # no statistics of it
                if isinstance(module, ASPPPooling):
                    module.eval()

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        dropout = self.config.seed * 1_000_003 + self.global_step * self.config.processes
        torch.manual_seed(dropout + self.global_rank)  # the same after a resume
        labels, weights = batch["labels"], batch["weight"]  # (B, c, c), (B,)
        if self.config.consistency and batch["machine"].any():
            labels = self._labelled_anew(batch)
        logits = self.net(normalise(batch["pixels"]))  # of both heads, (B, K, c, c)
        loss = self._loss(logits["out"].float(), labels, weights)
        loss = loss + self.config.aux * self._cross_entropy(logits["aux"].float(), labels, weights)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise DivergedError(f"the loss is {value} at step {self.global_step + 1} of {self.config.steps}")
        self.losses.append(value)
        self.log("loss", value)
        return loss

    @torch.no_grad()
    def _labelled_anew(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's labels (B, c, c), those of machine-labelled crops by the running average, of the views that they
        were made of. What is unlabelled stays so.

        Source: Yang et al. 2023 (UniMatch), section 3.1, FixMatch for segmentation; the average as in Mean Teacher.
        """
        machine = batch["machine"]  # (B,)
        views = batch["views"][machine]  # (M, 2, 3, c, c)
        net = self.average.module.eval()
        sure, found = net(normalise(views.flatten(0, 1)))["out"].float().softmax(1).max(1)  # (2 M, c, c)
        first, second = found.where(sure >= self.config.sure, UNLABELLED).unflatten(0, (-1, 2)).unbind(1)
        said = torch.where(batch["pasted"][machine], second, first)
        labels = batch["labels"].clone()
        before = labels[machine]
        labels[machine] = said.where(before != UNLABELLED, UNLABELLED)
        return labels

    def _loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        loss = self._cross_entropy(logits, labels, weights)
        if self.config.dice:
            loss = loss + self.config.dice * dice_loss(logits, labels, weights)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted by class and by crop; 0 where a batch has no labelled pixel."""
        every = F.cross_entropy(logits, labels, self.weights, ignore_index=UNLABELLED, reduction="none")
        known = labels != UNLABELLED  # (B, c, c)
        scale = self.weights[labels.where(known, 0)] * known * weights.float()[:, None, None]
        return (every * weights.float()[:, None, None]).sum() / scale.sum().clamp(min=1e-6)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), 5.0))
        if not np.isfinite(norm):
            raise DivergedError(
                f"the gradient is {norm} at step {self.global_step + 1} of {self.config.steps}"
            )

    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update_parameters(self.net)

    def _average(self, averages: Any, currents: Any, count: Any) -> None:
        """Move the average: faster at first, so that it does not remember the random start."""
        decay = min(self.config.ema, (1 + int(count)) / (10 + int(count)))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current.to(average.dtype), 1 - decay)
            else:
                average.copy_(current)

    def on_train_epoch_end(self) -> None:
        self.loss = float(np.mean(self.losses))
        if self.check:
            self.miou = self._validate()
            self.log("miou", self.miou)
            self._lose_patience(self.miou)

    def _validate(self) -> float:
        """mIoU of the average on the held-out paintings, labelled whole as `pseudo-label` does without extras."""
        net = self.average.module.eval()
        segmenter = Segmenter(net, self.classes, 0, self.mark, self.device)
        matrix = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        for one in self.check[self.global_rank :: self.config.processes]:
            image = np.ascontiguousarray(one.pixels.numpy().transpose(1, 2, 0))
            matrix += confusion(
                one.labels.numpy(), predict_map(segmenter, image, PLAIN)[0], len(self.classes)
            )
        total = self.trainer.strategy.reduce(torch.from_numpy(matrix).to(self.device), reduce_op="sum")
        return score(total.cpu().numpy(), self.classes.names).miou

    def _lose_patience(self, miou: float) -> None:
        """Stop in the last round only: the rounds before it make its teacher, and their ends are set."""
        if self.config.round_of(self.global_step) < self.config.rounds:
            return
        self.best, self.waited = (miou, 0) if miou > self.best else (self.best, self.waited + 1)
        if 0 < self.config.patience <= self.waited:
            self.trainer.should_stop = True

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
        checkpoint |= {"best": self.best, "waited": self.waited}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses.clear()
        self.losses.extend(checkpoint["losses"])
        self.loss = float(np.mean(self.losses))
        self.miou, self.best, self.waited = checkpoint["miou"], checkpoint["best"], checkpoint["waited"]
        # the next stretch may be longer or shorter than the saved one, whose batches Lightning would count in
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)


def dice_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """1 - mean soft Dice coefficient of the classes in the batch: each counts alike, however few its pixels.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) class indices, 255 = unlabelled.
        weights: (B,) of each crop.

    Source: arXiv:1606.04797, equation for D, with plain sums in the denominator.
    """
    known = (labels != UNLABELLED) * weights.float()[:, None, None]  # (B, h, w)
    found = logits.softmax(1) * known[:, None]
    truth = F.one_hot(labels.where(labels != UNLABELLED, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    both, there = (found * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))  # (K,)
    dice = 2 * both / (found.sum((0, 2, 3)) + there).clamp(min=1e-6)
    present = there > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
