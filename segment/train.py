"""Training on the hand masks with Lightning: resumable, reproducible, and quiet on stdout."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import whole_file, write_json
from annotate.lock import one_training
from annotate.masks import LEARNT_FROM, mask_digests
from annotate.paintings import read_index
from annotate.progress import Stopwatch, is_first, note, progress
from annotate.workspace import Workspace
from segment.config import TrainConfig
from segment.crops import Crops, Stretches
from segment.data import Sample, load_samples
from segment.device import choose_device, has_fast_bfloat16, memory_told
from segment.learner import DivergedError, Learner
from segment.model import DAMAGE, Segmenter, build, initialise, save, saved_config
from segment.rounds import FOLDER, Rest, prepare
from segment.signals import EndsOnSigterm, interruption_told

ENOUGH = 20  # hand masks from which on some are held out for validation
STATE = "training.ckpt"
# what stops the logs; the state's own errors are `whole_file`'s
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


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
    watch = Stopwatch()
    where = choose_device(device)
    if where.type == "cuda" and config.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {config.devices}: torch sees {torch.cuda.device_count()} here; ask for fewer"
        )
    classes = workspace.settings().classes
    masks = mask_digests(workspace.masks("hand"))
    samples = load_samples(workspace, classes, config.smallest_side)
    folder = workspace.model("deeplab")
    mark = fingerprint(samples, classes, config)
    with one_training(folder):
        if again:
            (folder / STATE).unlink(missing_ok=True)
        saved = saved_config(workspace)
        finished = saved is not None and saved.get("fingerprint") == mark and not again
        if saved is not None and finished and _steps_done(folder / STATE, mark) is None:
            write_json(folder / LEARNT_FROM, masks)  # one that shows nothing may have come or gone
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
        if config.patience and not check:
            note(
                f"--patience has no effect: from {ENOUGH} hand masks on some are held out, here are {len(samples)}"
            )
        rest = unlabelled(workspace, samples, folder / FOLDER, mark, config)
        fitted = fit(learn, check, classes, config, where, folder, mark, rest=rest)
        if not is_first():
            # the first process saves its model; the statistics of BatchNorm are each one's own
            raise SystemExit(0)
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
        write_json(folder / LEARNT_FROM, masks)
        (folder / STATE).unlink(missing_ok=True)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        seconds = watch.seconds()
        return TrainResult(
            str(folder), len(samples), len(check), config.steps, seconds, fitted.loss, fitted.miou, True
        )


def fingerprint(samples: Sequence[Sample], classes: ClassTable, config: TrainConfig) -> str:
    """What the trained weights depend on; a model with the same fingerprint is up to date."""
    settings = asdict(config) | {"workers": 0, "devices": 1, "nodes": 1, "strategy": "auto"}
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


def unlabelled(
    workspace: Workspace, samples: Sequence[Sample], folder: Path, mark: str, config: TrainConfig
) -> Rest | None:
    """The paintings to label and learn on from; None where there are none, or no rounds."""
    by_hand = {one.key for one in samples}
    others = [one for key, one in read_index(workspace).items() if key not in by_hand]
    if not others or not config.rounds or not config.machine_crops:
        return None
    return prepare(workspace, others, folder, mark, config.smallest_side)


def fit(
    learn: Sequence[Sample],
    check: Sequence[Sample],
    classes: ClassTable,
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    mark: str,
    title: str = "Training DeepLabV3",
    rest: Rest | None = None,
) -> Fitted:
    """Train one network; its state and logs lie in `folder`, and a state with the same `mark` is gone on from.

    Args:
        rest: paintings that the model labels, and learns on from, in each of `config.rounds`; None: no rounds.

    Raises:
        UserError: as `train`.
    """
    if rest is None or not rest:
        config, rest = replace(config, rounds=0), None
    L.seed_everything(config.seed, verbose=False)
    net = build(config.architecture, len(classes))
    state = folder / STATE
    done = _steps_done(state, mark)
    if done is None:
        initialise(net, config.architecture, config.init)
    learner = Learner(net, learn, check, classes, config, mark)
    logs = _loggers(folder)
    crops = DataLoader(
        Crops(learn, config, rest),
        batch_size=config.batch // config.processes,
        sampler=Stretches(config, learner),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    if config.nodes > 1:
        note(f"begins when all {config.nodes} machines have: give each the same command (docs/scale.md)")
    for number, end in enumerate(config.round_ends):
        if done is not None and number < config.rounds and done >= end:
            continue  # this round was finished before
        if number and rest is not None and not rest.labelled(number):
            rest.label(_teacher(state, classes, config, device), number, config.sure)
        name = f"{title}, round {number} of {config.rounds}" if config.rounds else title
        _run(learner, crops, device, folder, name, end, state if done is not None else None, logs)
        done = end
    return Fitted(learner.average.module.to(device).eval(), learner.loss, learner.miou)


def _run(
    learner: Learner,
    crops: DataLoader[Any],
    device: torch.device,
    folder: Path,
    title: str,
    end: int,
    resume: Path | None,
    logs: list[Logger],
) -> None:
    """Train up to step `end`."""
    config = learner.config
    with _quiet(), progress(title, end) as advance:
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            use_distributed_sampler=False,  # `Stretches` shares the crops out
            precision="bf16-mixed" if has_fast_bfloat16(device) else "32-true",
            max_steps=end,
            logger=logs,
            log_every_n_steps=min(10, config.save_every, config.steps),
            callbacks=[_Bar(advance), _State(folder / STATE), EndsOnSigterm()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,  # by `_State`, which replaces the one that Lightning would add
            num_sanity_val_steps=0,
        )
        advice = f"lower --batch (now {config.batch}) or --crop (now {config.crop})"
        try:
            with memory_told(device, advice), interruption_told(folder / STATE):
                trainer.fit(learner, crops, ckpt_path=resume, weights_only=True)
        except DivergedError as error:
            kept = (
                f"the last good state stays in {folder}" if (folder / STATE).exists() else "nothing was saved"
            )
            raise UserError(f"training stopped: {error}; lower --lr (now {config.lr:g}); {kept}") from error
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"{error.filename or folder}: {error.strerror}; free some space or mend the permissions, "
                "and run the command again: it goes on from the last saved state"
            ) from error


def _loggers(folder: Path) -> list[Logger]:
    """Loss and mIoU as a table and for TensorBoard."""
    return [CSVLogger(folder, name="logs"), TensorBoardLogger(folder, name="tensorboard")]


def _teacher(state: Path, classes: ClassTable, config: TrainConfig, device: torch.device) -> Segmenter:
    """The average in a saved state, ready to label: a resumed round is labelled as it would have been."""
    found = torch.load(state, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "average.module."
    net = build(config.architecture, len(classes))
    net.load_state_dict({k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)})
    return Segmenter(net.to(device).eval(), classes, 0, "", device)


class _Bar(L.Callback):
    """Moves the progress bar."""

    def __init__(self, advance: Callable[..., None]) -> None:
        self.advance = advance

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.advance(trainer.global_step, before=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        text = f"loss {np.mean(list(pl_module.losses)[-20:]):.3f}"
        self.advance(1, note=text if pl_module.miou is None else f"{text}  mIoU {100 * pl_module.miou:.1f}")


class _State(Checkpoint):
    """Writes the state after every stretch, whole or not at all; Lightning calls a Checkpoint after the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with whole_file(self.path) if trainer.is_global_zero else nullcontext(self.path) as path:
            trainer.save_checkpoint(path)  # every process calls it, the first one writes
        trainer.strategy.barrier()  # the next round's teacher is read from it by all


def _steps_done(state: Path, mark: str) -> int | None:
    """Steps that a saved state of this very run has behind it; None without one."""
    if not state.exists():
        return None
    try:
        found = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
        return int(found["global_step"]) if found.get("mark") == mark else None
    except DAMAGE as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        note(f"{state}: damaged ({line}); no training goes on from it")
        return None


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
