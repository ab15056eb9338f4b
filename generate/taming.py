"""taming-transformers checkpoints in and out, without running any code from the pickle or the YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from annotate.errors import UserError
from annotate.files import whole_file, write_whole
from annotate.progress import note
from annotate.workspace import Workspace
from generate.checkpoint import (
    WEIGHTS,
    fit,
    load_gpt,
    load_vqgan,
    read_checkpoint,
    save_model,
    uninitialised,
)
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.taming_config import STAGES, landmarks, net2net_yaml, parts, read_params, vqgan_yaml
from generate.torch_file import read_state_dict
from generate.training_state import STATE
from generate.vqgan import VQGAN

# prefix in a whole Net2Net's state dict -> model of the workspace
PREFIXES = {
    "first_stage_model.": "painting-codes",
    "cond_stage_model.": "mask-codes",
    "transformer.": "transformer",
}


@dataclass(frozen=True)
class Imported:
    """What came in."""

    models: dict[str, int]  # parameters of each
    replaced: tuple[str, ...]
    missing: tuple[str, ...]  # what painting still needs


@dataclass(frozen=True)
class Exported:
    """What was written."""

    checkpoint: str
    config: str
    tensors: int


def import_checkpoint(
    workspace: Workspace, checkpoint: Path, config: Path, stage: str = "painting", replace: bool = False
) -> Imported:
    """Take a whole Net2Net, or a single VQGAN, into the workspace's models.

    Args:
        checkpoint: a Lightning checkpoint of any version, or a bare state dict.
        config: the YAML beside it.
        stage: what a single VQGAN is: painting or mask.
        replace: other models of these names, trained here or imported, may go.

    Raises:
        UserError: a file is missing or damaged, the pickle would call something, sizes do not fit, or the
            workspace has other models and `replace` was not said.
    """
    described = parts(read_params(config), stage, config)
    state = read_state_dict(checkpoint)
    _check_kind(state, [prefix for _, prefix, _ in described], checkpoint)
    built: dict[str, VQGAN | GPT] = {}
    for name, prefix, sizes in described:
        tensors = _wanted(state, prefix)
        _check_sizes(sizes, tensors, config, prefix)
        with uninitialised():
            model = GPT(sizes) if isinstance(sizes, GPTConfig) else VQGAN(sizes)
        fit(model, tensors, f"{checkpoint} ({name})")
        built[name] = model
    changed = {name: model for name, model in built.items() if not _same(workspace.model(name), model)}
    there = [name for name in changed if _occupied(workspace.model(name))]
    if there and not replace:
        which = ", ".join(str(workspace.model(name)) for name in there)
        raise UserError(
            f"{which}: another model is there already; add --replace, or choose another --workspace"
        )
    _note_broken(built, checkpoint)
    for name, model in changed.items():  # only when all of them fit
        save_model(workspace.model(name), model, {"source": f"imported from {checkpoint.name}"})
        _forget(workspace, name)
    if there:
        note(f"replaced what the workspace had as {', '.join(there)}")
    missing = (name for name in PREFIXES.values() if not (workspace.model(name) / WEIGHTS).exists())
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()}
    return Imported(counts, tuple(there), tuple(missing))


def export_checkpoint(workspace: Workspace, checkpoint: Path, stage: str = "whole") -> Exported:
    """Write the three models as one Net2Net checkpoint, and `CHECKPOINT.yaml` that says how to build it.

    The state dict has every name that the original code expects, the attention masks included, so it loads
    strictly.

    Args:
        stage: `whole`, or a single VQGAN: `painting` or `mask`.

    Raises:
        UserError: a model is missing, or the YAML would take the place of another file.
    """
    if stage in STAGES:
        codes, _ = load_vqgan(workspace.model(STAGES[stage]), f"tool generate train {stage}")
        table = vqgan_yaml(codes.config, "image" if stage == "painting" else "segmentation")
        return _write(checkpoint, dict(codes.state_dict()), {"base_learning_rate": 4.5e-06, **table})
    painting, _ = load_vqgan(workspace.model("painting-codes"), "tool generate train painting")
    mask, _ = load_vqgan(workspace.model("mask-codes"), "tool generate train mask")
    gpt, _ = load_gpt(workspace.model("transformer"), "tool generate train transformer")
    state: dict[str, Tensor] = {}
    for prefix, model in zip(PREFIXES, (painting, mask, gpt), strict=True):
        state |= {prefix + name: tensor for name, tensor in model.state_dict().items()}
    block = gpt.config.block_size
    for number in range(gpt.config.layers):
        past = torch.tril(torch.ones(block, block))[None, None]
        state[f"transformer.blocks.{number}.attn.mask"] = past
    return _write(checkpoint, state, net2net_yaml(painting.config, mask.config, gpt.config))


def _write(checkpoint: Path, state: Mapping[str, Tensor], model: Mapping[str, Any]) -> Exported:
    if checkpoint.suffix.lower() in (".yaml", ".yml"):
        raise UserError(
            f"{checkpoint}: the YAML is written beside the checkpoint; give a name such as last.ckpt"
        )
    beside = checkpoint.with_suffix(".yaml")
    text = yaml.safe_dump({"model": dict(model)}, sort_keys=False)
    if beside.exists() and not _holds(beside, text):
        raise UserError(f"{beside}: another file is there already; move it away or choose another name")
    with whole_file(checkpoint) as temporary:
        tensors = {name: one.contiguous() for name, one in state.items()}
        torch.save({"state_dict": tensors, "epoch": 0, "global_step": 0}, temporary)
    write_whole(beside, text)
    return Exported(str(checkpoint), str(beside), len(state))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _check_kind(state: Mapping[str, Tensor], prefixes: list[str], checkpoint: Path) -> None:
    """Refuse a single VQGAN with a whole Net2Net's YAML, and the other way round."""
    there = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state)]
    if prefixes == [""] and there:
        raise UserError(f"{checkpoint}: a whole Net2Net, the YAML a single VQGAN's; give its project.yaml")
    if prefixes != [""] and not there:
        raise UserError(
            f"{checkpoint}: not a whole Net2Net, as the YAML is; give the single VQGAN's own YAML"
        )
    for prefix in prefixes:
        if prefix and prefix not in there:
            raise UserError(f"{checkpoint}: has no {prefix}*, which the YAML describes; give its own YAML")


def _check_sizes(
    sizes: VQGANConfig | GPTConfig, tensors: Mapping[str, Tensor], config: Path, prefix: str
) -> None:
    """Refuse sizes that are not the checkpoint's, before a model of such sizes takes all memory."""
    for keys, name, shape in landmarks(sizes):
        if name not in tensors:
            raise UserError(f"{config}: {keys}: the checkpoint has no {prefix}{name}; give its own YAML")
        if tensors[name].shape != shape:
            has = f"{prefix}{name} is {tuple(tensors[name].shape)} in the checkpoint, not {shape}"
            raise UserError(f"{config}: {keys}: {has}; give its own YAML")


def _same(folder: Path, model: VQGAN | GPT) -> bool:
    """Whether the folder has this model, however it came there."""
    try:
        found = read_checkpoint(folder)
    except UserError:  # none yet, or a damaged one
        return False
    state, sizes = model.state_dict(), json.loads(json.dumps(model.config.to_dict()))
    if found.config.get("sizes") != sizes or found.tensors.keys() != state.keys():
        return False
    return all(torch.equal(one, state[name]) for name, one in found.tensors.items())


def _occupied(folder: Path) -> bool:
    """Whether there is a model, or a training that goes on from its state."""
    return any((folder / name).exists() for name in (WEIGHTS, STATE))


def _forget(workspace: Workspace, name: str) -> None:
    """Remove what belonged to the model that was there before: its training's state, figures and pictures."""
    (workspace.model(name) / STATE).unlink(missing_ok=True)
    for kind in ("json", "png"):
        report = workspace.reports / f"generate-train-{name.removesuffix('-codes')}.{kind}"
        report.unlink(missing_ok=True)


def _note_broken(models: Mapping[str, VQGAN | GPT], checkpoint: Path) -> None:
    """Say so where weights are not numbers; such a model paints nothing."""
    broken = [
        f"{name}: {key}"
        for name, model in models.items()
        for key, one in model.state_dict().items()
        if not one.isfinite().all()
    ]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        note(f"{checkpoint}: {broken[0]}{more}: NaN or infinite weights; its training went astray")


def _wanted(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One part's tensors without its prefix; what is of use in training only is left behind."""
    cut = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
    return {
        name: one.float()
        for name, one in cut.items()
        if not name.startswith(("loss.", "model_ema.", "permuter."))
        and name not in ("colorize", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
        and not name.endswith("attn.mask")
    }
