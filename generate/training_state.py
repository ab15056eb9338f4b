"""What tells a finished training from one that was killed, and whether that one can go on."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from annotate.errors import UserError
from annotate.options import option_of
from annotate.progress import note
from generate.checkpoint import WEIGHTS, read_checkpoint
from generate.presets import Schedule

STATE = "training.ckpt"


@dataclass(frozen=True)
class Basis:
    """What the weights of a training depend on."""

    settings: Mapping[str, Any]  # those that decide the weights
    data: Sequence[Any] = ()  # digests of pictures and codes

    @property
    def mark(self) -> str:
        """The same mark, the same weights."""
        return fingerprint(self.settings, *self.data)

    def with_lr(self, lr: Any) -> Basis:
        return Basis({**self.settings, "lr": lr}, self.data)


def up_to_date(folder: Path, mark: str, again: bool) -> Mapping[str, Any] | None:
    """The config of the model in `folder`, where it was trained to the end with the same mark."""
    if again:
        (folder / STATE).unlink(missing_ok=True)
        return None
    if not (folder / WEIGHTS).exists() or (folder / STATE).exists():
        return None
    config = read_checkpoint(folder).config
    return config if config.get("mark") == mark else None


def fingerprint(*parts: Any) -> str:
    """What the weights depend on, in 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def finish(folder: Path) -> None:
    """The model is saved: the state that a killed run would have needed can go."""
    (folder / STATE).unlink(missing_ok=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete what runs left that were killed while they saved their state."""
    for part in folder.glob(f".{STATE}.*.part"):
        part.unlink(missing_ok=True)


def resumable(state: Path, config: Schedule, basis: Basis) -> bool:
    """Whether a training of this config and basis can go on from the state; it may go on with another learning rate.

    Raises:
        UserError: it is the state of a training with other settings.
    """
    if not state.exists():
        return False
    try:
        found = torch.load(state, map_location="cpu", weights_only=True, mmap=True)["own"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        note(f"{state}: damaged ({str(error).splitlines()[0]}); training starts afresh")
        return False
    before, now = found["settings"], basis.settings
    free = set() if found["finished"] or found["done"] >= config.steps else {"lr"}
    for name in sorted((before.keys() | now.keys()) - free):
        if before.get(name) != now.get(name):
            had, has = (_named(name, one) for one in (before, now))
            what = f"an unfinished training had {had}, now {has}"
            raise UserError(
                f"{state.parent}: {what}; give the same to go on with it, or --again to train afresh"
            )
    if found["mark"] != basis.with_lr(before["lr"]).mark:
        note(f"{state.parent}: the paintings, masks or codes changed since training began; it starts afresh")
        return False
    other = "" if before["lr"] == now["lr"] else f" with --lr {now['lr']:g} instead of {before['lr']:g}"
    note(f"going on at step {found['done']} of {config.steps}{other}")
    return True


def _named(name: str, settings: Mapping[str, Any]) -> str:
    option = option_of(name)
    if name == "perceptual" and name not in settings:
        return f"{option} none"
    return f"{option} {settings[name]}" if name in settings else f"no {option}"
