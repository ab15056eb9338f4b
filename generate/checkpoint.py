"""Models on disk: one safetensors file that carries its own config, and a readable copy of it beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from annotate.errors import UserError
from annotate.files import sha256, whole_file, write_json
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.vqgan import VQGAN
from segment.tensors import write_tensors

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a model's folder holds."""

    config: dict[str, Any]  # "kind": vqgan or gpt; "sizes"; and whatever training or import added
    tensors: dict[str, Tensor]
    digest: str  # of the file: tells two trainings apart


def save_model(folder: Path, model: VQGAN | GPT, about: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json`, each whole or not at all; an older model survives a failure.

    Args:
        folder: `workspace.model(NAME)`.
        model: its weights are saved as float32, its sizes in the config.
        about: what else the config should say: training settings, losses, source.
    """
    kind = "gpt" if isinstance(model, GPT) else "vqgan"
    config = {"kind": kind, "sizes": model.config.to_dict(), **about}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
    with whole_file(folder / WEIGHTS) as temporary:
        write_tensors(tensors, temporary, {"config": json.dumps(config)})
    write_json(folder / "config.json", config)


def read_checkpoint(folder: Path, command: str = "") -> Checkpoint:
    """Read a model's folder; nothing in it is ever executed.

    Args:
        command: the command that makes this model, for the error when there is none.

    Raises:
        UserError: no model yet, or a damaged file.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{folder}: no model yet; run `{command or 'tool status'}`")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); delete the folder and run `{command}` again") from error
    return Checkpoint(config, tensors, sha256(path)[:16])


def load_vqgan(folder: Path, command: str) -> tuple[VQGAN, Checkpoint]:
    """Load a VQGAN, in evaluation mode.

    Raises:
        UserError: as `read_checkpoint`, or a model of another kind or other sizes; the line names the key.
    """
    found = read_checkpoint(folder, command)
    with uninitialised():
        model = VQGAN(VQGANConfig.from_dict(_sizes(folder, found, "vqgan", command)))
    fit(model, found.tensors, str(folder))
    return model.eval(), found


def load_gpt(folder: Path, command: str) -> tuple[GPT, Checkpoint]:
    """Load a transformer, in evaluation mode. Raises as `load_vqgan`."""
    found = read_checkpoint(folder, command)
    with uninitialised():
        model = GPT(GPTConfig.from_dict(_sizes(folder, found, "gpt", command)))
    fit(model, found.tensors, str(folder))
    return model.eval(), found


def fit(model: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Take the tensors as the model's own, strictly.

    Raises:
        UserError: a name is missing, unknown, or has another shape; the line names the first.
    """
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{where}: the checkpoint has no {name}, which the config asks for")
        if name not in wanted:
            raise UserError(f"{where}: the checkpoint has {name}, for which the config has no place")
        if wanted[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the config asks for {tuple(wanted[name].shape)}"
            raise UserError(f"{where}: {name} is {shapes}; it was made with other sizes")
    model.load_state_dict(dict(tensors), assign=True)


class uninitialised(TorchFunctionMode):  # noqa: N801, it is used like a function
    """Modules made inside have no random weights: for those whose weights are loaded a moment later.

    The seed document's transformer takes three seconds to draw them. (The `meta` device would do as well, but takes
    as long to import.)
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _sizes(folder: Path, found: Checkpoint, kind: str, command: str) -> dict[str, Any]:
    if found.config.get("kind") != kind:
        raise UserError(f"{folder}: holds a {found.config.get('kind')}, not a {kind}; run `{command}` again")
    sizes = dict(found.config["sizes"])
    try:
        (VQGANConfig if kind == "vqgan" else GPTConfig).from_dict(sizes)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: {error}; it was made by another version, run `{command}` again"
        ) from error
    return sizes
