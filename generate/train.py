"""What the three trainings share: a Lightning loop that can be killed at any time, and goes on where it stood."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from annotate.errors import UserError
from annotate.files import whole_file
from annotate.progress import is_first, note, progress
from generate.data import Stretches
from generate.figures import Coming
from generate.memory import freed_memory_kept
from generate.presets import Schedule
from generate.recorded_step import RecordedStep
from generate.training_state import STATE, Basis, resumable, sweep
from segment.device import choose_device, has_fast_bfloat16
from segment.signals import EndsOnSigterm, interruption_told

POINTS = 200  # of the loss curve that a report keeps

Figures = dict[str, Tensor]


class DivergedError(Exception):
    """The loss or its gradient is not finite."""


class Stage(L.LightningModule):
    """One training: a subclass says what the loss is; accumulation, clipping and learning rate are the same.

    Args:
        config: its settings.
        basis: what the weights depend on; saved in the state.
    """

    def __init__(self, config: Schedule, basis: Basis) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.basis = config, basis
        self.items: Dataset[Any] | None = None  # what is learnt from; `fit_stage` says it
        self.done = 0  # steps of the optimizer
        self.history: list[dict[str, float]] = []
        self.finished = False  # early
        self.latest_figures: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}  # figures of this step
        self._coming: list[Coming] = []  # of steps that are done
        self._micro = 0
        self._recorded: tuple[int, RecordedStep] | None = None  # of which phase

    @property
    def starts_step(self) -> bool:
        """Is this the first of the batches that make one step."""
        return self._micro == 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Items of this process; Lightning asks when it knows how many processes there are."""
        assert self.items is not None, "fit_stage has set it"
        config, ranks = self.config, self.trainer.world_size
        per_step = config.batch * config.accumulate * ranks
        return DataLoader(
            self.items,
            batch_size=config.batch,
            sampler=Stretches(
                config.steps * per_step,
                config.save_every * per_step,
                lambda: self.done * per_step,
                self.global_rank,
                ranks,
            ),
            num_workers=config.workers,
            pin_memory=self.device.type == "cuda",  # what is not, a GPU is waited for to copy
            persistent_workers=config.workers > 0,
        )

    def losses(self, batch: Any) -> Figures:
        """The loss to minimise under "loss", and whatever else the progress bar and report should show."""
        raise NotImplementedError

    def main_optimizer(self) -> Optimizer:
        raise NotImplementedError

    def after_step(self) -> None:
        """Called behind every step of the optimizer."""

    def stretch_end(self) -> None:
        """Called before a state is saved: held-out figures."""

    def draw_grid(self) -> None:
        """Write a picture of what it can do by now into reports/."""

    def wants_grid(self) -> bool:
        """Did the stretch that ends here pass a multiple of `grid_every`, or is it the last."""
        config = self.config
        every = max(config.grid_every, config.save_every)
        before = self.done - config.save_every
        return self.finished or self.done >= config.steps or self.done // every > before // every

    def training_step(self, batch: Any, number: int) -> None:
        if self.starts_step:
            # the same draws after a resume, others in each process
            torch.manual_seed(self.config.seed * 1_000_003 + self.done + self.global_rank * 2**32)
        for name, figure in self.gradients(batch).items():
            self.figure(name, figure / self.config.accumulate)
        self._micro = (self._micro + 1) % self.config.accumulate
        if self._micro:
            return
        optimizer, rate = self._main(), self.learning_rate(self.done)
        self.figure("gradient", self._gradient())
        try:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        except FloatingPointError as error:
            raise self._diverged(str(error), self.done + 1) from error
        optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.after_step()
        self._remember()

    def phase(self) -> int:
        """Steps of one phase run the same kernels whatever their batches hold: a GPU records them."""
        return 0

    def gradients(self, batch: Any) -> Figures:
        """Add a batch's gradients to those of its step, and give its figures."""
        if self.device.type != "cuda" or self.trainer.world_size * self.config.accumulate > 1:
            return self._plain(batch)
        if self._recorded is None or self._recorded[0] != self.phase():
            self._recorded = None  # its memory is free before another is recorded
            self._recorded = self.phase(), RecordedStep(self._plain, self.leaves())
        return self._recorded[1](batch)

    def forget_recording(self) -> None:
        """Free the memory of a GPU that a recording holds."""
        self._recorded = None

    def _plain(self, batch: Any) -> Figures:
        figures = self.losses(batch)
        self.manual_backward(figures["loss"] / self.config.accumulate)
        return figures

    def _gradient(self) -> Tensor:
        """Clip the step's gradient where the config says so; a number that is finite where all of it is."""
        leaves = self.leaves()
        if self.config.clip:
            return nn.utils.clip_grad_norm_(leaves, self.config.clip)
        found = [one.grad for one in leaves if one.grad is not None]
        if self.device.type == "cuda":  # in a few kernels
            return torch.stack(torch._foreach_norm(found)).sum()
        # a sum tells what is not finite as well as a norm does, and reads memory twice as fast
        return torch.stack([one.sum().float() for one in found]).sum()

    @property
    def lag(self) -> int:
        """Steps whose figures are still on their way: a GPU that was waited for at each step would idle meanwhile."""
        return int(self.device.type == "cuda")

    def catch_up(self, lag: int = 0) -> None:
        """Fetch the figures of all steps but the last `lag`.

        Raises:
            DivergedError: a loss or gradient is not finite. Weights are spoilt by then; the saved state is not.
        """
        every = max(1, self.config.steps // POINTS)
        while len(self._coming) > lag:
            coming = self._coming.pop(0)
            figures = coming.arrived()
            for what in ("loss", "gradient"):
                if not math.isfinite(figures[what]):
                    raise self._diverged(f"the {what} is {figures[what]}", coming.step)
            del figures["gradient"]
            if coming.step % every == 0 or coming.step == self.config.steps:
                self.history.append({"step": coming.step, **figures})
            self.latest_figures = figures

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(f"{what} at step {step} of {self.config.steps}")

    def leaves(self) -> list[Tensor]:
        """What the main optimizer's gradients arrive at; those that it checks itself need not be among them."""
        return [one for group in self._main().param_groups for one in group["params"]]

    def learning_rate(self, step: int) -> float:
        """Of a step: a linear rise, then the config's decay, which ends at a hundredth."""
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / (config.warmup + 1))
        if config.decay == "cosine":
            rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
        return rate

    def figure(self, name: str, value: Tensor) -> None:
        """Add to a figure of this step, which the progress bar and the report show."""
        found = value.detach()
        self._sums[name] = self._sums[name] + found if name in self._sums else found

    def latest(self, name: str) -> float:
        """A figure, averaged over the last tenth of the curve."""
        values = [one[name] for one in self.history[-max(1, POINTS // 10) :] if name in one]
        return sum(values) / len(values) if values else math.nan

    def configure_optimizers(self) -> Any:
        return self.main_optimizer()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = {
            "mark": self.basis.mark,
            "settings": dict(self.basis.settings),
            "done": self.done,
            "history": self.history,
            "finished": self.finished,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["own"]
        self.done, self.history, self.finished = own["done"], own["history"], own["finished"]

    def _main(self) -> Any:
        optimizers = self.optimizers()
        return optimizers[0] if isinstance(optimizers, list) else optimizers

    def _remember(self) -> None:
        self._coming.append(Coming(self.done, self._sums))
        self._sums = {}
        self.catch_up(self.lag)


def fit_stage(stage: Stage, items: Dataset[Any], folder: Path, device: str, title: str) -> None:
    """Train until the schedule's end, or until the stage says that it is finished.

    Raises:
        UserError: a state of other settings lies in `folder`, the loss is not finite, too little memory, or the
            disk is full; what was saved before stays.
    """
    config, where, state = stage.config, choose_device(device), folder / STATE
    if is_first():
        sweep(folder)
    resume = resumable(state, config, stage.basis)
    if resume and _restore_finished(state, stage):
        return
    stage.items = items
    if config.nodes > 1 and is_first():
        note(f"begins when all {config.nodes} machines have: give each the same command (docs/scale.md)")
    several, half = config.devices * config.nodes > 1, _wants_bfloat16(config.precision, where)
    memory = freed_memory_kept(where.type, large=not half)
    with _quiet(), memory, progress(title, config.steps) as advance:
        trainer = L.Trainer(
            accelerator="gpu" if where.type == "cuda" else "cpu",
            devices=config.devices,
            num_nodes=config.nodes,
            # the discriminator, and codes that have not started, are not in every loss
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            use_distributed_sampler=False,  # `Stretches` shares the items out
            precision="bf16-mixed" if half else "32-true",
            max_epochs=-1,  # `_State` ends it
            logger=False,
            callbacks=[_State(state), EndsOnSigterm(), *([_Bar(advance)] if is_first() else [])],
            plugins=[_Direct()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        try:
            with interruption_told(state):
                trainer.fit(stage, ckpt_path=state if resume else None, weights_only=True)
        except DivergedError as error:
            kept = "nothing was saved yet"
            if state.exists():
                kept = f"the state before it is kept in {folder}: the next run goes on from it, or with --again from step 0"
            raise UserError(f"training stopped: {error}; lower --lr (now {config.lr:g}); {kept}") from error
        except RuntimeError as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise UserError(
                    f"out of memory on {where.type}: lower --batch (now {config.batch}) and raise --accumulate "
                    f"(now {config.accumulate}), or lower {config.reach}"
                ) from error
            raise
    if trainer.global_rank:
        raise SystemExit(0)  # the first process has the model and saves it
    stage.forget_recording()
    stage.to("cpu").eval()


class _Bar(L.Callback):
    """Moves the progress bar, once a step of the optimizer."""

    def __init__(self, advance: Callable[..., None]) -> None:
        self.advance = advance
        self.shown = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.advance(pl_module.done, before=True)
        self.shown = pl_module.done

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.done > self.shown:
            figures = pl_module.latest_figures
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self.advance(pl_module.done - self.shown, note=text)
            self.shown = pl_module.done


class _Direct(TorchCheckpointIO):
    """Writes a state straight to its file; Lightning would make all of it once more in memory first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)


class _State(L.Callback):
    """Writes the state after every stretch, whole or not at all; ends the training behind its last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.catch_up()
        pl_module.stretch_end()
        first = trainer.is_global_zero
        if first and pl_module.wants_grid():
            pl_module.draw_grid()
        with whole_file(self.path) if first else nullcontext(self.path) as path:
            trainer.save_checkpoint(path)  # every process calls it, the first one writes
        trainer.should_stop = pl_module.finished or pl_module.done >= pl_module.config.steps


def _restore_finished(state: Path, stage: Stage) -> bool:
    """Load a state behind whose last step the run was killed; False where steps are left."""
    found = torch.load(state, map_location="cpu", weights_only=True)
    if not (found["own"]["finished"] or found["own"]["done"] >= stage.config.steps):
        return False
    stage.load_state_dict(found["state_dict"])
    stage.on_load_checkpoint(found)
    stage.eval()
    return True


def _wants_bfloat16(precision: str, device: torch.device) -> bool:
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners, tips and warnings off: the progress bar says what there is to say."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
