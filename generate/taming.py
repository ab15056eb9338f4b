"""taming-transformers checkpoints in and out, without running any code from the pickle or the YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from annotate.errors import UserError
from annotate.files import whole_file, write_whole
from annotate.workspace import Workspace
from generate.checkpoint import fit, load_gpt, load_vqgan, save_model, uninitialised
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.torch_file import read_state_dict
from generate.vqgan import VQGAN

# prefix in a whole Net2Net's state dict -> model of the workspace
PREFIXES = {
    "first_stage_model.": "painting-codes",
    "cond_stage_model.": "mask-codes",
    "transformer.": "transformer",
}
STAGES = {"painting": "painting-codes", "mask": "mask-codes"}


@dataclass(frozen=True)
class Imported:
    """Parameters of each model that came in."""

    models: dict[str, int]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    checkpoint: str
    config: str
    tensors: int


def import_checkpoint(
    workspace: Workspace, checkpoint: Path, config: Path, stage: str = "painting"
) -> Imported:
    """Take a whole Net2Net, or a single VQGAN, into the workspace's models.

    Args:
        checkpoint: a Lightning checkpoint of any version, or a bare state dict.
        config: the YAML beside it.
        stage: what a single VQGAN is: painting or mask.

    Raises:
        UserError: a file is missing or damaged, the pickle would call something, or sizes do not fit.
    """
    params = read_params(config)
    state = read_state_dict(checkpoint)
    built: dict[str, VQGAN | GPT] = {}
    for name, prefix, sizes in _parts(params, stage, config):
        with uninitialised():
            model = GPT(sizes) if isinstance(sizes, GPTConfig) else VQGAN(sizes)
        fit(model, _wanted(state, prefix), f"{checkpoint} ({name})")
        built[name] = model
    for name, model in built.items():  # only when all of them fit
        save_model(workspace.model(name), model, {"source": f"imported from {checkpoint.name}"})
    return Imported({name: sum(p.numel() for p in model.parameters()) for name, model in built.items()})


def export_checkpoint(workspace: Workspace, checkpoint: Path, stage: str = "whole") -> Exported:
    """Write the three models as one Net2Net checkpoint, and `CHECKPOINT.yaml` that says how to build it.

    The state dict has every name that the original code expects, the attention masks included, so it loads
    strictly.

    Args:
        stage: `whole`, or a single VQGAN: `painting` or `mask`.
    """
    if stage in STAGES:
        codes, _ = load_vqgan(workspace.model(STAGES[stage]), f"tool generate train {stage}")
        table = _vqgan_yaml(codes.config, "image" if stage == "painting" else "segmentation")
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
    return _write(checkpoint, state, _net2net_yaml(painting.config, mask.config, gpt.config))


def _write(checkpoint: Path, state: Mapping[str, Tensor], model: Mapping[str, Any]) -> Exported:
    with whole_file(checkpoint) as temporary:
        tensors = {name: one.contiguous() for name, one in state.items()}
        torch.save({"state_dict": tensors, "epoch": 0, "global_step": 0}, temporary)
    beside = checkpoint.with_suffix(".yaml")
    write_whole(beside, yaml.safe_dump({"model": dict(model)}, sort_keys=False))
    return Exported(str(checkpoint), str(beside), len(state))


def read_params(config: Path) -> dict[str, Any]:
    """`model.params` of a taming-transformers YAML; no `target` in it is ever imported.

    Raises:
        UserError: missing, not YAML, or without that key.
    """
    try:
        table = yaml.safe_load(config.read_text(encoding="utf-8"))
        params = table["model"]["params"]
        if not isinstance(params, dict):
            raise TypeError("model.params is not a mapping")
    except OSError as error:
        raise UserError(f"{config}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise UserError(
            f"{config}: not a taming-transformers config ({line}); give the project.yaml"
        ) from error
    return params


def vqgan_config(params: Mapping[str, Any]) -> VQGANConfig:
    """A VQModel's params as our sizes. Raises KeyError for a missing one, ValueError for an unsupported one."""
    sizes = params["ddconfig"]
    _refuse(params, {"remap": None})
    _refuse(sizes, {"double_z": False, "attn_type": "vanilla", "resamp_with_conv": True, "tanh_out": False})
    return VQGANConfig(
        in_channels=int(sizes["in_channels"]),
        out_channels=int(sizes["out_ch"]),
        channels=int(sizes["ch"]),
        channel_multipliers=tuple(int(one) for one in sizes["ch_mult"]),
        residual_blocks=int(sizes["num_res_blocks"]),
        attention_resolutions=tuple(int(one) for one in sizes["attn_resolutions"]),
        resolution=int(sizes["resolution"]),
        z_channels=int(sizes["z_channels"]),
        embed_dim=int(params["embed_dim"]),
        codebook_size=int(params["n_embed"]),
        dropout=float(sizes.get("dropout", 0.0)),
    )


def gpt_config(params: Mapping[str, Any]) -> GPTConfig:
    """A GPT's params as our sizes. Raises KeyError for a missing one, ValueError for an unsupported one."""
    _refuse(params, {"n_unmasked": 0})
    sizes = GPTConfig(
        vocab_size=int(params["vocab_size"]),
        block_size=int(params["block_size"]),
        layers=int(params["n_layer"]),
        heads=int(params["n_head"]),
        width=int(params["n_embd"]),
        dropout=max(float(params.get(name, 0.0)) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")),
    )
    if sizes.window < 2:  # a block that is not twice a square is refused by `window` itself
        raise ValueError(f"block_size {sizes.block_size} is too small")
    return sizes


def _parts(
    params: Mapping[str, Any], stage: str, config: Path
) -> list[tuple[str, str, VQGANConfig | GPTConfig]]:
    """(model of the workspace, prefix in the state dict, sizes) of each part that the config describes."""
    try:
        if "transformer_config" not in params:
            sizes = vqgan_config(params)
            if stage == "painting" and sizes.in_channels != 3:
                raise ValueError(f"in_channels {sizes.in_channels} are a mask's; add --stage mask")
            return [(STAGES[stage], "", sizes)]
        permuter = params.get("permuter_config") or {}
        if not str(permuter.get("target", "Identity")).endswith("Identity"):
            raise ValueError(f"permuter {permuter['target']} orders tokens in a way that is not supported")
        return [
            ("painting-codes", "first_stage_model.", vqgan_config(_inner(params, "first_stage_config"))),
            ("mask-codes", "cond_stage_model.", vqgan_config(_inner(params, "cond_stage_config"))),
            ("transformer", "transformer.", gpt_config(_inner(params, "transformer_config"))),
        ]
    except KeyError as error:
        raise UserError(f"{config}: {error} is missing under model.params; give the project.yaml") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{config}: {error}") from error


def _inner(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`params` of one part; a part that is only a word (`__is_unconditional__`) has none."""
    part = params[name]
    if not isinstance(part, dict):
        raise ValueError(f"{name} is {part!r}: only models conditioned on a mask's VQGAN are supported")
    inner = part["params"]
    if not isinstance(inner, dict):
        raise ValueError(f"{name}.params is {inner!r}, not a mapping")
    return inner


def _refuse(params: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Settings that would change the numbers, and that we have only one value of."""
    for name, value in known.items():
        if params.get(name, value) != value:
            raise ValueError(f"{name}: {params[name]!r} is not supported, only {value!r}")


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


def _net2net_yaml(painting: VQGANConfig, mask: VQGANConfig, gpt: GPTConfig) -> dict[str, Any]:
    sizes = {
        "vocab_size": gpt.vocab_size,
        "block_size": gpt.block_size,
        "n_layer": gpt.layers,
        "n_head": gpt.heads,
        "n_embd": gpt.width,
    }
    params = {
        "first_stage_key": "image",
        "cond_stage_key": "segmentation",
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": sizes},
        "first_stage_config": _vqgan_yaml(painting, "image"),
        "cond_stage_config": _vqgan_yaml(mask, "segmentation"),
    }
    target = "taming.models.cond_transformer.Net2NetTransformer"
    return {"base_learning_rate": 4.5e-06, "target": target, "params": params}


def _vqgan_yaml(c: VQGANConfig, image_key: str) -> dict[str, Any]:
    sizes = {
        "double_z": False,
        "z_channels": c.z_channels,
        "resolution": c.resolution,
        "in_channels": c.in_channels,
        "out_ch": c.out_channels,
        "ch": c.channels,
        "ch_mult": list(c.channel_multipliers),
        "num_res_blocks": c.residual_blocks,
        "attn_resolutions": list(c.attention_resolutions),
        "dropout": c.dropout,
    }
    params = {
        "embed_dim": c.embed_dim,
        "n_embed": c.codebook_size,
        "image_key": image_key,
        "ddconfig": sizes,
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    return {"target": "taming.models.vqgan.VQModel", "params": params}
