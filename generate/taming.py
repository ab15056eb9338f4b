"""taming-transformers checkpoints in and out, without running any code from the pickle or the YAML."""

from __future__ import annotations

import collections
import io
import pickle
import types
import zipfile
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
from generate.checkpoint import fit, load_gpt, load_vqgan, save_model
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
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
        model = GPT(sizes) if isinstance(sizes, GPTConfig) else VQGAN(sizes)
        fit(model, _wanted(state, prefix), f"{checkpoint} ({name})")
        built[name] = model
    for name, model in built.items():  # only when all of them fit
        save_model(workspace.model(name), model, {"source": f"imported from {checkpoint.name}"})
    return Imported({name: sum(p.numel() for p in model.parameters()) for name, model in built.items()})


def export_checkpoint(workspace: Workspace, checkpoint: Path) -> Exported:
    """Write the three models as one Net2Net checkpoint, and `CHECKPOINT.yaml` that says how to build it.

    The state dict has every name that the original code expects, the attention masks included, so it loads
    strictly.
    """
    painting, _ = load_vqgan(workspace.model("painting-codes"), "tool generate train painting")
    mask, _ = load_vqgan(workspace.model("mask-codes"), "tool generate train mask")
    gpt, _ = load_gpt(workspace.model("transformer"), "tool generate train transformer")
    state: dict[str, Tensor] = {}
    for prefix, model in zip(PREFIXES, (painting, mask, gpt), strict=True):
        state |= {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    block = gpt.config.block_size
    for number in range(gpt.config.layers):
        past = torch.tril(torch.ones(block, block))[None, None]
        state[f"transformer.blocks.{number}.attn.mask"] = past
    with whole_file(checkpoint) as temporary:
        torch.save({"state_dict": state, "epoch": 0, "global_step": 0}, temporary)
    beside = checkpoint.with_suffix(".yaml")
    write_whole(
        beside, yaml.safe_dump(_net2net_yaml(painting.config, mask.config, gpt.config), sort_keys=False)
    )
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
    """A VQModel's params as our sizes. Raises KeyError for a missing one."""
    sizes = params["ddconfig"]
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
    """A GPT's params as our sizes. Raises KeyError for a missing one."""
    return GPTConfig(
        vocab_size=int(params["vocab_size"]),
        block_size=int(params["block_size"]),
        layers=int(params["n_layer"]),
        heads=int(params["n_head"]),
        width=int(params["n_embd"]),
        dropout=float(params.get("resid_pdrop", 0.0)),
    )


def read_state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; its other content becomes inert.

    Raises:
        UserError: missing, damaged, or a pickle that would call something other than a tensor's maker; the
            line names what it wanted to call.
    """
    try:
        if zipfile.is_zipfile(checkpoint) and any(
            n.endswith("/constants.pkl") for n in zipfile.ZipFile(checkpoint).namelist()
        ):
            raise UserError(
                f"{checkpoint}: a TorchScript program, not a checkpoint; give the .ckpt of the training"
            )
        loaded = torch.load(checkpoint, map_location="cpu", pickle_module=_SAFE_PICKLE, weights_only=False)
    except OSError as error:
        raise UserError(f"{checkpoint}: cannot be read ({error.strerror})") from error
    except _ForbiddenError as error:
        raise UserError(
            f"{checkpoint}: refused, its pickle wants to call {error}; get it from a source you trust"
        ) from error
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{checkpoint}: not a readable checkpoint ({line}); copy it again from its source"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not any(isinstance(one, Tensor) for one in state.values()):
        raise UserError(f"{checkpoint}: holds no state_dict; give a taming-transformers checkpoint")
    return {name: one for name, one in state.items() if isinstance(name, str) and isinstance(one, Tensor)}


class _ForbiddenError(Exception):
    """The pickle wants to call this."""


class _Inert:
    """What a class of the pickle becomes: it takes anything and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


# all that a pickle of tensors and plain containers has to call
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("builtins", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
}
for _kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"):
    _ALLOWED[("torch", f"{_kind}Storage")] = getattr(torch, f"{_kind}Storage")

# modules whose names are only ever classes of a training run, of no use here: they become inert
_INERT_MODULES = (
    "pytorch_lightning",
    "lightning",
    "omegaconf",
    "taming",
    "_codecs",
    "argparse",
    "numpy",
    "pathlib",
    "typing",
)


class _SafeUnpickler(pickle.Unpickler):
    """Lets tensors and plain containers through, makes a training's classes inert, refuses the rest by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[(module, name)]
        if module.split(".")[0] in _INERT_MODULES:
            return type(name.rpartition(".")[2], (_Inert,), {})
        raise _ForbiddenError(f"{module}.{name}")


def _safe_load(file: Any, **kwargs: Any) -> Any:
    return _SafeUnpickler(file, **kwargs).load()


_SAFE_PICKLE = types.ModuleType("safe_pickle")
vars(_SAFE_PICKLE).update(
    Unpickler=_SafeUnpickler, load=_safe_load, loads=lambda data, **kw: _safe_load(io.BytesIO(data), **kw)
)


def _parts(
    params: Mapping[str, Any], stage: str, config: Path
) -> list[tuple[str, str, VQGANConfig | GPTConfig]]:
    """(model of the workspace, prefix in the state dict, sizes) of each part that the config describes."""
    try:
        if "transformer_config" not in params:
            return [(STAGES[stage], "", vqgan_config(params))]
        return [
            ("painting-codes", "first_stage_model.", vqgan_config(params["first_stage_config"]["params"])),
            ("mask-codes", "cond_stage_model.", vqgan_config(params["cond_stage_config"]["params"])),
            ("transformer", "transformer.", gpt_config(params["transformer_config"]["params"])),
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{config}: {error} is missing or not a number under model.params") from error


def _wanted(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One part's tensors without its prefix; losses, attention masks, EMA and `colorize` are left behind."""
    cut = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
    return {
        name: one.float()
        for name, one in cut.items()
        if not name.startswith(("loss.", "model_ema."))
        and name != "colorize"
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
    return {"model": {"base_learning_rate": 4.5e-06, "target": target, "params": params}}


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
